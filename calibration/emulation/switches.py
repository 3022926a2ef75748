"""The switches of the switchable emulator, written into a graph: one for each edge, and a graph input for each weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from demi.calibration.emulation.kernels import origin, spell_out
from demi.calibration.emulation.widen import is_exact
from demi.calibration.graph_pieces import ORIGIN, place_behind
from demi.float16 import HalfFormat, round_through
from demi.tensors import Array

SWITCHES = "demi_switches"


class OperandsLike(Protocol):
    """Positions of the operands of a node that become half with it."""

    @property
    def inputs(self) -> frozenset[int]: ...

    @property
    def outputs(self) -> frozenset[int]: ...


Edge = tuple[str | None, str | None]
"""(maker, reader): the nodes whose precision decides if a tensor is rounded for the reader; None never rounds.

The maker of a graph input is the input itself: it is stored as it comes, so only `run(..., stores=True)` rounds it.
"""


def input_source(name: str) -> str:
    """Return the name of a float graph input in `Emulator.run(..., stores=True)`."""
    return f"input:{name}"


@dataclass(frozen=True, slots=True)
class WeightFeed:
    """One weight for one reader, in single and in half."""

    reader: str
    single: Array
    half: Array


class SwitchedGraph:
    """Builder that writes the switches into a graph; owns the graph, the edge numbers and the weights to feed."""

    def __init__(
        self,
        model: ir.Model,
        operands: Mapping[str, OperandsLike],
        fmt: HalfFormat,
        half_weights: Mapping[str, Array],
        kernels: Mapping[str, str],
    ) -> None:
        self._half_weights = half_weights
        self._kernels = kernels
        self.model = spell_out(model, lambda node: node.name in operands)
        self.edges: dict[Edge, int] = {}
        self.weights: dict[str, WeightFeed] = {}
        self.rounded_by: dict[str, str] = {}
        """By tensor that its maker may round, the node whose precision decides."""
        self._operands = operands
        self._fmt = fmt
        self._half = ir.DataType.FLOAT16 if fmt.name == "fp16" else ir.DataType.BFLOAT16
        self._switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL))
        self._gathers: dict[int, ir.Node] = {}
        """By edge number, the node that extracts its switch."""
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
            if maker and value.name and value.producer() is not None and self._leaves(value, maker):
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
        """Return the node whose precision decides if the value is rounded where it is made; None if it never is."""
        node = value.producer()
        if node is None:
            return (
                input_source(value.name or "") if value.is_graph_input() and value.graph is self.model.graph else None
            )
        if is_exact(node) and origin(node) not in self._kernels:
            return None  # in half, an exact operator's inputs are rounded already
        return origin(node) if value.index() in self._outputs(node) else None

    def _leaves(self, value: ir.Value, maker: str) -> bool:
        """Return True if a tensor is read outside of the kernel that makes it."""
        kernel = self._kernels.get(maker)
        return (
            kernel is None
            or value.is_graph_output()
            or any(self._kernels.get(origin(use.node)) != kernel for use in value.uses())
        )

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
        """Return `If(switch of the edge, rounded value, value)`, placed right behind the value's producer.

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
        """Return one switch as a scalar; `_build` places its node at the top of the main graph, for every body."""
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
        """Return a graph input for one reader's weight, which is fed rounded or not."""
        name = f"{value.name}_demi_for_{reader}"
        if name not in self.weights:
            assert value.const_value is not None
            single = np.asarray(value.const_value.numpy(), dtype=np.float32)
            if value not in self._rounded_weights:
                half = self._half_weights.get(value.name or "", single)
                self._rounded_weights[value] = round_through(half, self._fmt)
            self.weights[name] = WeightFeed(reader, single, self._rounded_weights[value])
            fed = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(single.shape))
            self.model.graph.inputs.append(fed)
            self._fed[name] = fed
        return self._fed[name]


def _branch(name: str, value: ir.Value, steps: Sequence[tuple[str, ir.DataType | None]]) -> ir.Graph:
    """Return the branch of an If that outputs a value of the outer graph after these steps."""
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
