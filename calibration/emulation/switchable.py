"""The switchable emulator: one session that answers for every choice of half nodes.

Every place where a tensor may be read in half reads `Where(switch, rounded, original)`; the switches are one boolean
graph input, and weights are graph inputs that are fed rounded or not. A trial costs one run, not a new session.

A reader sees a tensor rounded when its own node computes in half (the tensor is cast) or the node that made it does
(the tensor is stored in half). Those are the two conditions of an edge, (maker, reader).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from demi.calibration.emulation.kernels import origin, spell_out
from demi.calibration.emulation.placement import place_behind
from demi.calibration.emulation.widen import is_exact
from demi.calibration.graph_pieces import ORIGIN
from demi.calibration.observe import Probe, exposed
from demi.calibration.sessions import session_for
from demi.float16 import HalfFormat, round_through
from demi.runtime.base import Session
from demi.runtime.options import FAITHFUL
from demi.tensors import Array, Feeds

SWITCHES = "demi_switches"


class OperandsLike(Protocol):
    """Which operands of a node become half with it, by position."""

    @property
    def inputs(self) -> frozenset[int]: ...

    @property
    def outputs(self) -> frozenset[int]: ...


Edge = tuple[str | None, str | None]
"""(maker, reader): the nodes by whose precision a tensor is rounded where it is read; None never rounds.

The maker of a graph input is the input itself: it is stored as it comes, so only `run(..., stores=True)` rounds it.
"""


def input_source(name: str) -> str:
    """The name under which a float graph input takes part in `Emulator.run(..., stores=True)`."""
    return f"input:{name}"


@dataclass(frozen=True, slots=True)
class _WeightFeed:
    """One weight as one reader sees it."""

    reader: str
    single: Array
    half: Array


class Emulator:
    """Answers for any set of half nodes. Owns its sessions; `close` (or the `with` block) ends them."""

    def __init__(
        self,
        prepared: ir.Model,
        operands: Mapping[str, OperandsLike],
        fmt: HalfFormat,
        half_weights: Mapping[str, Array] | None = None,
    ) -> None:
        """`half_weights` holds what a weight becomes in half where that is not its rounded value."""
        self._fmt = fmt
        self._names = [value.name or "" for value in prepared.graph.outputs]
        self._tensors = [value.name or "" for node in prepared.graph for value in node.outputs]
        self._builder = _Builder(prepared.clone(), operands, fmt, half_weights or {})
        self._stack = contextlib.ExitStack()
        self._session: Session = self._stack.enter_context(session_for(self._builder.model, settings=FAITHFUL))
        self._probe: Probe | None = None
        self._inputs = {input_source(value.name or "") for value in prepared.graph.inputs}
        self._held: frozenset[str] = frozenset()

    def __enter__(self) -> Emulator:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hold(self, single: AbstractSet[str]) -> None:
        """These nodes will stay single: an input that is rounded for its readers stays as it is for them."""
        self._held = frozenset(single)

    def run(self, half: AbstractSet[str], feeds: Feeds, *, stores: bool = False) -> Feeds:
        """The model's outputs when the nodes in `half` compute in half.

        With `stores`, only what those nodes store is rounded, their results and their weights, and not what they read:
        the share of the error that is theirs alone. Float graph inputs take part as `input_source(name)`.
        """
        values = self._session.run(feeds | self._switch_feeds(half, stores)).values()
        return dict(zip(self._names, values, strict=True))

    def chunks(self, names: Sequence[str]) -> Iterator[list[str]]:
        """The names of those inner tensors that can be read, in chunks that one run can hand out; `read` each in turn."""
        if self._probe is None:
            copy, found = exposed(self._builder.model, set(self._tensors))
            self._probe = Probe(self._stack.enter_context(session_for(copy, settings=FAITHFUL)), found)
        known = set(self._probe.names)
        return self._probe.chunks([name for name in names if name in known])

    def read(self, half: AbstractSet[str], feeds: Feeds, chunk: Sequence[str]) -> Feeds:
        """One chunk of inner tensors as they are stored when the nodes in `half` compute in half."""
        assert self._probe is not None, "ask for `chunks` first"
        values = self._probe.run(feeds | self._switch_feeds(half), chunk)
        return {
            name: round_through(array, self._fmt) if self._builder.rounded_by.get(name) in half else array
            for name, array in values.items()
        }

    def _switch_feeds(self, half: AbstractSet[str], stores: bool = False) -> Feeds:
        edges = self._builder.edges
        on = (self._is_stored(maker, reader, half) or (reader in half and not stores) for maker, reader in edges)
        switches = np.fromiter(on, np.bool_, len(edges))
        weights = {
            name: feed.half if feed.reader in half else feed.single for name, feed in self._builder.weights.items()
        }
        return ({SWITCHES: switches} if edges else {}) | weights

    def _is_stored(self, maker: str | None, reader: str | None, half: AbstractSet[str]) -> bool:
        """Whether the reader gets what the maker rounded; an input is rounded by a cast, which only half readers use."""
        return maker in half and not (maker in self._inputs and reader in self._held)


class _Builder:
    """Writes the switches into a graph. Owns the graph, the numbering of the edges and the weights to feed."""

    def __init__(
        self, model: ir.Model, operands: Mapping[str, OperandsLike], fmt: HalfFormat, half_weights: Mapping[str, Array]
    ) -> None:
        self._half_weights = half_weights
        self.model = spell_out(model, lambda node: node.name in operands)
        self.edges: dict[Edge, int] = {}
        self.weights: dict[str, _WeightFeed] = {}
        self.rounded_by: dict[str, str] = {}
        """For each tensor that is rounded where it is made, the node whose precision decides."""
        self._operands = operands
        self._fmt = fmt
        self._half = ir.DataType.FLOAT16 if fmt.name == "fp16" else ir.DataType.BFLOAT16
        self._switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL))
        self._scalars: dict[int, ir.Value] = {}
        self._rounded: dict[ir.Value, ir.Value] = {}
        self._rounded_weights: dict[ir.Value, Array] = {}
        self._selected: dict[tuple[ir.Value, int], ir.Value] = {}
        self._fed: dict[str, ir.Value] = {}
        self._build()

    def _build(self) -> None:
        values = [value for value in _values(self.model) if value.dtype is ir.DataType.FLOAT]
        for value in values:
            maker = self._maker(value)
            if maker and value.name and value.producer() is not None:
                self.rounded_by[value.name] = maker
            for use in list(value.uses()):
                self._connect(value, maker, use.node, use.idx)
            for graph in (self.model.graph, *self.model.graph.subgraphs()):
                for position, output in enumerate(graph.outputs):
                    if output is value and maker is not None and value.producer() is not None:
                        graph.outputs[position] = self._select(value, (maker, None))
        if self.edges:
            self._switches.shape = ir.Shape([len(self.edges)])
            self.model.graph.inputs.append(self._switches)

    def _connect(self, value: ir.Value, maker: str | None, node: ir.Node, position: int) -> None:
        reader = origin(node) if position in self._inputs(node) else None
        if reader is None and (maker is None or value.producer() is None):
            return
        if value.is_initializer() and not value.is_graph_input() and value.const_value is not None:
            if reader is not None:
                node.replace_input_with(position, self._weight(value, reader))
            return
        node.replace_input_with(position, self._select(value, (maker, reader)))

    def _maker(self, value: ir.Value) -> str | None:
        """The node by whose precision the value is rounded where it is made; None when it never is."""
        node = value.producer()
        if node is None:
            return (
                input_source(value.name or "") if value.is_graph_input() and value.graph is self.model.graph else None
            )
        if is_exact(node):
            return None  # an exact operator's inputs are rounded already when it computes in half
        return origin(node) if value.index() in self._outputs(node) else None

    def _inputs(self, node: ir.Node) -> frozenset[int]:
        if ORIGIN in node.metadata_props:
            return frozenset(i for i, v in enumerate(node.inputs) if v is not None and v.dtype is ir.DataType.FLOAT)
        operands = self._operands.get(node.name or "")
        return operands.inputs if operands else frozenset()

    def _outputs(self, node: ir.Node) -> frozenset[int]:
        if ORIGIN in node.metadata_props:
            is_border = node.op_type == "Scan"
            return frozenset() if is_border else frozenset(range(len(node.outputs)))
        operands = self._operands.get(node.name or "")
        return operands.outputs if operands else frozenset()

    def _select(self, value: ir.Value, edge: Edge) -> ir.Value:
        """`Where(switch of the edge, rounded value, value)`, right behind where the value is made."""
        index = self.edges.setdefault(edge, len(self.edges))
        key = (value, index)
        if key not in self._selected:
            rounded = self._round(value)
            where = ir.node("Where", [self._scalar(index), rounded, value], name=f"demi_select_{len(self._selected)}")
            output = where.outputs[0]
            output.name = f"{value.name}_demi_select_{index}"
            output.shape, output.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
            producer = rounded.producer()
            assert producer is not None
            assert producer.graph is not None
            producer.graph.insert_after(producer, where)
            self._selected[key] = output
        return self._selected[key]

    def _round(self, value: ir.Value) -> ir.Value:
        if value not in self._rounded:
            down = ir.node("Cast", [value], attributes={"to": int(self._half)}, name=f"demi_down_{len(self._rounded)}")
            down.outputs[0].name = f"{value.name}_demi_half"
            down.outputs[0].type, down.outputs[0].shape = ir.TensorType(self._half), value.shape
            up = ir.node("Cast", [down.outputs[0]], attributes={"to": 1}, name=f"demi_up_{len(self._rounded)}")
            up.outputs[0].name = f"{value.name}_demi_rounded"
            up.outputs[0].type, up.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
            place_behind(value, [down, up])
            self._rounded[value] = up.outputs[0]
        return self._rounded[value]

    def _scalar(self, index: int) -> ir.Value:
        """One switch as a scalar, made at the top of the main graph where every body sees it."""
        if index not in self._scalars:
            position = ir.Value(name=f"demi_switch_{index}", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
            position.const_value = ir.tensor(np.array(index, np.int64), name=position.name)
            self.model.graph.register_initializer(position)
            gather = ir.node("Gather", [self._switches, position], name=f"demi_gather_{index}")
            gather.outputs[0].name = f"demi_on_{index}"
            gather.outputs[0].type, gather.outputs[0].shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
            self.model.graph.insert_before(self.model.graph[0], gather)
            self._scalars[index] = gather.outputs[0]
        return self._scalars[index]

    def _weight(self, value: ir.Value, reader: str) -> ir.Value:
        """A graph input that is fed the weight, rounded or not, as one reader sees it."""
        name = f"{value.name}_demi_for_{reader}"
        if name not in self.weights:
            assert value.const_value is not None
            single = np.asarray(value.const_value.numpy(), dtype=np.float32)
            if value not in self._rounded_weights:
                half = self._half_weights.get(value.name or "", single)
                self._rounded_weights[value] = round_through(half, self._fmt)
            self.weights[name] = _WeightFeed(reader, single, self._rounded_weights[value])
            fed = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(single.shape))
            self.model.graph.inputs.append(fed)
            self._fed[name] = fed
        return self._fed[name]


def _values(model: ir.Model) -> list[ir.Value]:
    graphs = (model.graph, *model.graph.subgraphs())
    held = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    return held + [value for node in model.graph.all_nodes() for value in node.outputs]
