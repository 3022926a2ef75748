"""Nodes that ONNX Runtime leaves to the CPU on purpose: they compute with shapes, which lie in the host's memory.

The CUDA provider's Shape and Size write there, and what follows from them and from constants alone is put on the CPU,
where it costs less than its way to the GPU and back (GetCpuPreferredNodes of onnxruntime). The runtime tells the names of
a node, not its inputs: these are read from the model's bytes, since a server has no package that knows ONNX.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

SHAPES = frozenset({"Shape", "Size"})
CONSTANT = "Constant"
NESTED = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""Operators that read more than their inputs: the graphs within them see the values around."""

GRAPH, NODE, GRAPH_INPUT = 7, 1, 11
INPUT, OUTPUT, NAME, OPERATOR = 1, 2, 3, 4
"""Numbers of the fields of ModelProto, GraphProto and NodeProto in onnx.proto."""


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
    for graph in _fields(_view(model), GRAPH):
        nodes += [_node(each) for each in _fields(graph, NODE)]
        inputs |= {_text(name) for value in _fields(graph, GRAPH_INPUT) for name in _fields(value, 1)}
    return nodes, inputs


def _node(message: memoryview) -> Node:
    names, operators = [*_fields(message, NAME)], [*_fields(message, OPERATOR)]
    return Node(
        name=_text(names[-1]) if names else "",
        operator=_text(operators[-1]) if operators else "",
        inputs=tuple(_text(name) for name in _fields(message, INPUT) if name),
        outputs=tuple(_text(name) for name in _fields(message, OUTPUT)),
    )


def _view(model: Path | bytes) -> memoryview:
    """The bytes of a model; those of a file are not read before they are looked at: weights are passed over."""
    if isinstance(model, bytes):
        return memoryview(model)
    with model.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Every field of that number of a protobuf message; all that are wanted here have a length before them."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        kind = key & 7
        if kind == 2:
            size, at = _number(message, at)
            if key >> 3 == wanted:
                yield message[at : at + size]
            at += size
        elif kind == 0:
            _, at = _number(message, at)
        else:
            at += 8 if kind == 1 else 4


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """A protobuf number of seven bits a byte, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
