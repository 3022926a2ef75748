"""The switchable emulator: one session that answers for every choice of half nodes.

Every place where a tensor may be read in half reads `If(switch, rounded, original)`; the switches are one boolean
graph input, and weights are graph inputs that are fed rounded or not. A trial costs one run, not a new session, and what
is not rounded in it costs one copy.

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
from demi.calibration.emulation.widen import is_exact
from demi.calibration.graph_pieces import ORIGIN, place_behind
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
        self.held: frozenset[str] = frozenset()
        """The nodes that will stay single, whatever `half` a run is given."""

    def __enter__(self) -> Emulator:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hold(self, single: AbstractSet[str]) -> None:
        """These nodes will stay single: an input that is rounded for its readers stays as it is for them."""
        self.held = frozenset(single)

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
        return maker in half and not (maker in self._inputs and reader in self.held)


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
        self._gathers: dict[int, ir.Node] = {}
        """By edge, the node that takes its switch out of all of them."""
        self._rounded_weights: dict[ir.Value, Array] = {}
        self._selected: dict[tuple[ir.Value, int], ir.Value] = {}
        self._fed: dict[str, ir.Value] = {}
        self._build()

    def _build(self) -> None:
        places: dict[ir.Value, list[tuple[ir.Graph, int]]] = {}
        for graph in (self.model.graph, *self.model.graph.subgraphs()):
            for position, output in enumerate(graph.outputs):
                places.setdefault(output, []).append((graph, position))
        for value in [each for each in _values(self.model) if each.dtype is ir.DataType.FLOAT]:
            maker = self._maker(value)
            if maker and value.name and value.producer() is not None:
                self.rounded_by[value.name] = maker
            for use in list(value.uses()):
                self._connect(value, maker, use.node, use.idx)
            for graph, position in places.get(value, ()):
                if maker is not None and value.producer() is not None:
                    graph.outputs[position] = self._select(value, (maker, None))
        if self.edges:
            self._switches.shape = ir.Shape([len(self.edges)])
            self.model.graph.inputs.append(self._switches)
            self.model.graph.insert_before(self.model.graph[0], list(self._gathers.values()))

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
        """`If(switch of the edge, rounded value, value)`, right behind where the value is made.

        Only one branch runs. A Where would round in every run, and ONNX Runtime's takes three passes over its operands.
        """
        index = self.edges.setdefault(edge, len(self.edges))
        key = (value, index)
        if key not in self._selected:
            tag = f"{value.name}_demi_select_{index}"
            rounding = _branch(f"{tag}_half", value, [("Cast", self._half), ("Cast", ir.DataType.FLOAT)])
            leaving = _branch(f"{tag}_single", value, [("Identity", None)])
            choice = ir.node(
                "If",
                [self._switch(index)],
                attributes={"then_branch": rounding, "else_branch": leaving},
                name=f"demi_select_{len(self._selected)}",
            )
            output = choice.outputs[0]
            output.name, output.shape, output.type = tag, value.shape, ir.TensorType(ir.DataType.FLOAT)
            place_behind(value, [choice])
            self._selected[key] = output
        return self._selected[key]

    def _switch(self, index: int) -> ir.Value:
        """One switch as a scalar; `_build` places what makes it at the top of the main graph, where every body sees it."""
        if index not in self._gathers:
            position = ir.Value(name=f"demi_switch_{index}", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
            position.const_value = ir.tensor(np.array(index, np.int64), name=position.name)
            self.model.graph.register_initializer(position)
            gather = ir.node("Gather", [self._switches, position], name=f"demi_gather_{index}")
            gather.outputs[0].name = f"demi_on_{index}"
            gather.outputs[0].type, gather.outputs[0].shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
            self._gathers[index] = gather
        return self._gathers[index].outputs[0]

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


def _branch(name: str, value: ir.Value, steps: Sequence[tuple[str, ir.DataType | None]]) -> ir.Graph:
    """The branch of an If that hands out a value of the graph around it, after these steps."""
    nodes: list[ir.Node] = []
    for operator, dtype in steps:
        source = nodes[-1].outputs[0] if nodes else value
        node = ir.node(operator, [source], attributes={"to": int(dtype)} if dtype is not None else {})
        node.name = node.outputs[0].name = f"{name}_{len(nodes)}"
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype or ir.DataType.FLOAT), value.shape
        nodes.append(node)
    return ir.Graph([], [nodes[-1].outputs[0]], nodes=nodes, name=name)


def _values(model: ir.Model) -> list[ir.Value]:
    graphs = (model.graph, *model.graph.subgraphs())
    held = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    return held + [value for node in model.graph.all_nodes() for value in node.outputs]
