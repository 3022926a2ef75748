"""Helpers to rewrite graphs: replace a node by several, insert nodes, and build small ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from demi.tensors import Array

ORIGIN = "demi_origin"
"""Metadata key of a new node: the name of the node that it replaces."""

OPSET_AXES_AS_INPUT = 13
"""First opset in which ReduceSum, Squeeze and Unsqueeze take their axes as an input; 18 for other reductions."""


@dataclass(frozen=True, slots=True)
class Spelled:
    """The replacement of one node: the new nodes, in order, and the values that replace its outputs."""

    nodes: list[ir.Node]
    results: list[ir.Value]


def spelled(nodes: list[ir.Node]) -> Spelled:
    """Return a replacement whose only result is the first output of the last node."""
    return Spelled(nodes, [nodes[-1].outputs[0]])


def replace(node: ir.Node, pieces: Spelled) -> None:
    """Replace `node` by the pieces; the results take over the names, types and readers of its outputs."""
    graph = node.graph
    assert graph is not None
    kind = dtype_of(node)
    bodies = [inner for piece in pieces.nodes for inner in _inside(piece)]
    for position, piece in enumerate([*pieces.nodes, *bodies]):
        piece.name = f"{node.name}_demi{position}"
        piece.metadata_props[ORIGIN] = node.name or ""
        inside = position >= len(pieces.nodes)  # names in a subgraph may repeat in other subgraphs: make them unique
        for index, value in enumerate(piece.outputs):
            value.name = f"{piece.name}_{index}" if inside or not value.name else value.name
            value.type = value.type or ir.TensorType(kind)
    graph.insert_before(node, pieces.nodes)
    for old, new in zip(node.outputs, pieces.results, strict=True):
        new.shape, new.type = old.shape, old.type
        new.meta.update(old.meta)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if name := old.name:  # outputs without a name are unused
            old.name = f"{name}_demi_old"
            new.name = name
    graph.remove(node, safe=True)


def _inside(node: ir.Node) -> list[ir.Node]:
    graphs = (each.as_graph() for each in node.attributes.values() if each.type is ir.AttributeType.GRAPH)
    return [inner for graph in graphs for inner in graph.all_nodes()]


def typed(node: ir.Node, *kinds: ir.DataType) -> ir.Node:
    """Set the types of a node's outputs, and return the node."""
    for value, kind in zip(node.outputs, kinds, strict=False):
        value.type = ir.TensorType(kind)
    return node


def constant(value: Array, kind: ir.DataType | None = None) -> ir.Node:
    """Return a Constant node; `kind` is needed for types that NumPy lacks."""
    tensor = ir.tensor(value, dtype=kind) if kind is not None else ir.tensor(value)
    return typed(ir.node("Constant", [], attributes={"value": tensor}), tensor.dtype)


def zeros(shape: ir.Value, kind: ir.DataType) -> ir.Node:
    """Return a node for zeros of a shape that is computed at run time."""
    nought = ir.tensor(np.zeros(1, kind.numpy()), dtype=kind)
    return typed(ir.node("ConstantOfShape", [shape], attributes={"value": nought}), kind)


def shape_of(value: ir.Value) -> ir.Node:
    """Return a Shape node."""
    return typed(ir.node("Shape", [value]), ir.DataType.INT64)


def with_axis(op_type: str, value: ir.Value, axis: int, opset: int, kind: ir.DataType) -> list[ir.Node]:
    """Return the nodes that insert (Unsqueeze) or remove (Squeeze) an axis of length 1; the last one has the result."""
    if opset < OPSET_AXES_AS_INPUT:
        return [typed(ir.node(op_type, [value], attributes={"axes": [axis]}), kind)]
    axes = constant(np.array([axis], np.int64))
    return [axes, typed(ir.node(op_type, [value, axes.outputs[0]]), kind)]


def held(name: str, kind: ir.DataType) -> ir.Value:
    """Return an input value for a subgraph."""
    return ir.Value(name=name, type=ir.TensorType(kind))


def dtype_of(node: ir.Node) -> ir.DataType:
    """Return the type that a node computes in: that of its first float output, or FLOAT."""
    found = (value.dtype for value in node.outputs if value.dtype is not None and value.dtype.is_floating_point())
    return next(found, ir.DataType.FLOAT)


def operand(node: ir.Node, position: int) -> ir.Value | None:
    """Return the node's input at a position; None when it is omitted."""
    return node.inputs[position] if position < len(node.inputs) else None


def first(node: ir.Node) -> ir.Value:
    """Return the node's first input, which must exist."""
    value = node.inputs[0]
    assert value is not None
    return value


def constant_number(value: ir.Value | None) -> int | None:
    """Return the integer in a constant; None for a value that is computed or omitted."""
    return int(value.const_value.numpy().item()) if value is not None and value.const_value is not None else None


def body_of(inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], nodes: Sequence[ir.Node], name: str) -> ir.Graph:
    """Return the graph of a Scan's body."""
    return ir.Graph(list(inputs), list(outputs), nodes=list(nodes), name=name)


def place_behind(value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Insert nodes, in order, right behind the producer of `value`, or at the top of its graph for inputs and weights.

    There they precede every reader of `value`, in all scopes.
    """
    producer, graph = value.producer(), value.graph
    if producer is not None:
        assert producer.graph is not None
        producer.graph.insert_after(producer, nodes)
    elif graph is not None and len(graph):
        graph.insert_before(graph[0], nodes)
    elif graph is not None:
        graph.extend(nodes)


def subgraphs_of(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs in a node's attributes: branches of If, bodies of Loop and Scan."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type is ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found
