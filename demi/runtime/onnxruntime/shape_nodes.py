"""Nodes that ONNX Runtime leaves to the CPU on purpose: they compute with shapes, which lie in the host's memory.

The CUDA provider's Shape and Size write there, and what follows from them and from constants alone is put on the CPU,
where it costs less than its way to the GPU and back (GetCpuPreferredNodes of onnxruntime). The runtime tells the names of
a node, not its inputs: these are read from the model's bytes, since a server has no package that knows ONNX.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from demi.onnx_file.protobuf import GRAPH, NODE, fields, text, view

SHAPES = frozenset({"Shape", "Size"})
CONSTANT = "Constant"
NESTED = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""Operators that read more than their inputs: the graphs within them see the values around."""

GRAPH_INPUT = 11
INPUT, OUTPUT, NAME, OPERATOR = 1, 2, 3, 4
"""Numbers of the fields of GraphProto and NodeProto in onnx.proto."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the main graph."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def shape_nodes(model: Path | bytes, on_gpu: Collection[str]) -> set[str]:
    """Names of the nodes that read nothing but shapes and constants; `on_gpu` are the nodes whose outputs lie there.

    A node that is neither on the GPU nor on the CPU was folded away: what follows from it is known as well.
    """
    nodes, data = _read(model)
    found = set()
    for node in nodes:  # in an order in which every value is made before it is read
        makes_shape = node.operator in SHAPES
        if node.name and (makes_shape or _reads_none_of(data, node)):
            found.add(node.name)
        if not makes_shape and node.operator != CONSTANT and (node.name not in found or node.name in on_gpu):
            data.update(node.outputs)
    return found


def _reads_none_of(data: set[str], node: Node) -> bool:
    return bool(node.inputs) and node.operator not in NESTED and data.isdisjoint(node.inputs)


def _read(model: Path | bytes) -> tuple[list[Node], set[str]]:
    """The nodes of the main graph, in their order, and the names of its inputs."""
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
