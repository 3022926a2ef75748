"""Nodes that ONNX Runtime runs on the CPU on purpose, because they compute with shapes, which are in host memory.

The CUDA provider's Shape and Size write to host memory, and nodes that read only such values and constants are put on
the CPU, which is cheaper than copying (GetCpuPreferredNodes in onnxruntime). The runtime reports the names of nodes but
not their inputs, so these are read from the model's bytes: servers have no package that reads ONNX.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from demi.onnx_file.protobuf import GRAPH, NODE, fields, text, view

SHAPES = frozenset({"Shape", "Size"})
CONSTANT = "Constant"
NESTED = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""Operators that read more than their inputs, since their inner graphs see the values around them."""

GRAPH_INPUT = 11
INPUT, OUTPUT, NAME, OPERATOR = 1, 2, 3, 4
"""Field numbers of GraphProto and NodeProto in onnx.proto."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the main graph."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def shape_nodes(model: Path | bytes, on_gpu: Collection[str]) -> set[str]:
    """Return the names of the nodes that read only shapes and constants; `on_gpu` are the nodes that run on the GPU.

    A node that is neither on the GPU nor on the CPU was folded into a constant.
    """
    nodes, data = _read(model)
    found = set()
    for node in nodes:  # in topological order
        makes_shape = node.operator in SHAPES
        if node.name and (makes_shape or _reads_none_of(data, node)):
            found.add(node.name)
        if not makes_shape and node.operator != CONSTANT and (node.name not in found or node.name in on_gpu):
            data.update(node.outputs)
    return found


def _reads_none_of(data: set[str], node: Node) -> bool:
    return bool(node.inputs) and node.operator not in NESTED and data.isdisjoint(node.inputs)


def _read(model: Path | bytes) -> tuple[list[Node], set[str]]:
    """Return the nodes of the main graph, in order, and the names of its inputs."""
    nodes, inputs = [], set()
    for graph in fields(view(model), GRAPH):
        nodes += [_node(each) for each in fields(graph, NODE)]
        inputs |= {text(name) for value in fields(graph, GRAPH_INPUT) for name in fields(value, 1)}
    return nodes, inputs


def _node(message: memoryview) -> Node:
    names, operators = [*fields(message, NAME)], [*fields(message, OPERATOR)]
    return Node(
        name=text(names[-1]) if names else "",
        operator=text(operators[-1]) if operators else "",
        inputs=tuple(text(name) for name in fields(message, INPUT) if name),
        outputs=tuple(text(name) for name in fields(message, OUTPUT)),
    )
