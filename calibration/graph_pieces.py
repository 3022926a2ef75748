"""Pieces that stand for a node: how a rewritten node takes its place in a graph, and small nodes to write it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from demi.tensors import Array

ORIGIN = "demi_origin"
"""Metadata of a spelled-out node: the name of the node it stands for."""

OPSET_AXES_AS_INPUT = 13
"""From this opset on ReduceSum, Squeeze and Unsqueeze take their axes as an input; the other reductions from 18 on."""


@dataclass(frozen=True, slots=True)
class Spelled:
    """The nodes that stand for one node, in order, and the values that stand for its outputs."""

    nodes: list[ir.Node]
    results: list[ir.Value]


def spelled(nodes: list[ir.Node]) -> Spelled:
    """Nodes of which the last one makes the only result."""
    return Spelled(nodes, [nodes[-1].outputs[0]])


def replace(node: ir.Node, pieces: Spelled) -> None:
    """Put the pieces in the place of `node`; its outputs' names, types and readers go to the results."""
    graph = node.graph
    assert graph is not None
    kind = dtype_of(node)
    bodies = [inner for piece in pieces.nodes for inner in _inside(piece)]
    for position, piece in enumerate([*pieces.nodes, *bodies]):
        piece.name = f"{node.name}_demi{position}"
        piece.metadata_props[ORIGIN] = node.name or ""
        inside = position >= len(pieces.nodes)  # a body's graph has named its own, as other graphs name theirs
        for index, value in enumerate(piece.outputs):
            value.name = f"{piece.name}_{index}" if inside or not value.name else value.name
            value.type = value.type or ir.TensorType(kind)
    graph.insert_before(node, pieces.nodes)
    for old, new in zip(node.outputs, pieces.results, strict=True):
        new.shape, new.type = old.shape, old.type
        new.meta.update(old.meta)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if name := old.name:  # an output may be left out
            old.name = f"{name}_demi_old"
            new.name = name
    graph.remove(node, safe=True)


def _inside(node: ir.Node) -> list[ir.Node]:
    graphs = (each.as_graph() for each in node.attributes.values() if each.type is ir.AttributeType.GRAPH)
    return [inner for graph in graphs for inner in graph.all_nodes()]


def typed(node: ir.Node, *kinds: ir.DataType) -> ir.Node:
    """The node, with the types of its outputs."""
    for value, kind in zip(node.outputs, kinds, strict=False):
        value.type = ir.TensorType(kind)
    return node


def constant(value: Array, kind: ir.DataType | None = None) -> ir.Node:
    """A Constant node; `kind` for a type that NumPy lacks."""
    tensor = ir.tensor(value, dtype=kind) if kind is not None else ir.tensor(value)
    return typed(ir.node("Constant", [], attributes={"value": tensor}), tensor.dtype)


def zeros(shape: ir.Value, kind: ir.DataType) -> ir.Node:
    """Zeros of a shape that is known at run time."""
    nought = ir.tensor(np.zeros(1, kind.numpy()), dtype=kind)
    return typed(ir.node("ConstantOfShape", [shape], attributes={"value": nought}), kind)


def shape_of(value: ir.Value) -> ir.Node:
    """A Shape node."""
    return typed(ir.node("Shape", [value]), ir.DataType.INT64)


def with_axis(op_type: str, value: ir.Value, axis: int, opset: int, kind: ir.DataType) -> list[ir.Node]:
    """The nodes that insert (Unsqueeze) or take out (Squeeze) an axis of one element; the last one makes the result."""
    if opset < OPSET_AXES_AS_INPUT:
        return [typed(ir.node(op_type, [value], attributes={"axes": [axis]}), kind)]
    axes = constant(np.array([axis], np.int64))
    return [axes, typed(ir.node(op_type, [value, axes.outputs[0]]), kind)]


def held(name: str, kind: ir.DataType) -> ir.Value:
    """A value that a body is given: an input of its graph."""
    return ir.Value(name=name, type=ir.TensorType(kind))


def dtype_of(node: ir.Node) -> ir.DataType:
    """The type a node computes in: that of its first float output."""
    found = (value.dtype for value in node.outputs if value.dtype is not None and value.dtype.is_floating_point())
    return next(found, ir.DataType.FLOAT)


def operand(node: ir.Node, position: int) -> ir.Value | None:
    """The node's input at a position; None when it is left out."""
    return node.inputs[position] if position < len(node.inputs) else None


def first(node: ir.Node) -> ir.Value:
    """The node's first input, which it has."""
    value = node.inputs[0]
    assert value is not None
    return value


def constant_number(value: ir.Value | None) -> int | None:
    """A constant operand's whole number; None when it is computed or left out."""
    return int(value.const_value.numpy().item()) if value is not None and value.const_value is not None else None


def body_of(inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], nodes: Sequence[ir.Node], name: str) -> ir.Graph:
    """The graph of a Scan's body."""
    return ir.Graph(list(inputs), list(outputs), nodes=list(nodes), name=name)
