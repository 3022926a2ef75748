"""Find what a model needs beyond its own bytes: external files, and constants created by its nodes.

Both are read from the model's bytes before ONNX Runtime opens it, which would read the files and create the constants.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demi.onnx_file.protobuf import GRAPH, NODE, fields, numbers, text, view

FUNCTION, FUNCTION_NODE = 25, 7
INITIALIZER, SPARSE_INITIALIZER = 5, 15
INPUT, OUTPUT, OPERATOR, ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_NAME, ATTRIBUTE_INTS = 1, 8
TENSORS, GRAPHS, SPARSE_TENSORS = (5, 10), (6, 11), (22, 23)
TENSOR_NAME, TENSOR_INT64, TENSOR_RAW, EXTERNAL_DATA = 8, 7, 9, 13
"""Field numbers in onnx.proto: of ModelProto, FunctionProto, GraphProto, NodeProto, AttributeProto and TensorProto."""

FREE_BYTES = 1 << 30
"""Bytes of constants that any model may create: a causal mask for 16,384 tokens, the largest that is common."""

MOST_GROWTH = 20
"""The most bytes of a larger model's constants, as a multiple of the model's own size."""

ELEMENT_BYTES = 4
"""Assumed bytes of an element: most constants are FP32."""

MAKERS = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
"""Operators whose output size is given by an input, and the index of that input."""

RANDOM = frozenset({"RandomNormal", "RandomUniform"})
"""Operators whose output size is given by their attribute `shape`."""


@dataclass(frozen=True, slots=True)
class External:
    """External data of a tensor: a file beside the model, and how far it is read."""

    location: str
    end: int
    """Offset of the first byte behind the data, as far as the model states it."""


def external_files(model: Path | bytes) -> list[External]:
    """Return the external data of all tensors in a model, at any depth. Raises as `fields` does."""
    return [found for tensor in _tensors(view(model)) if (found := _external(tensor))]


def made_bytes(model: Path | bytes) -> int:
    """Estimate the bytes of the constants that a model creates from constant shapes. Raises as `fields` does."""
    nodes: list[memoryview] = []
    initializers: list[memoryview] = []
    for some, others in _graphs(view(model)):
        nodes += some
        initializers += others
    return _made(nodes, initializers) * ELEMENT_BYTES


def most_bytes(model_bytes: int) -> int:
    """Return the most bytes of constants that a model of this size may create."""
    return max(FREE_BYTES, MOST_GROWTH * model_bytes)


def _graphs(model: memoryview) -> Iterator[tuple[list[memoryview], list[memoryview]]]:
    """Yield the nodes and initializers of every graph and function, including graphs within nodes."""
    graphs = [(graph, NODE) for graph in fields(model, GRAPH)]
    graphs += [(function, FUNCTION_NODE) for function in fields(model, FUNCTION)]
    while graphs:
        graph, number = graphs.pop()
        nodes = list(fields(graph, number))
        yield nodes, list(fields(graph, INITIALIZER)) if number == NODE else []
        for attribute in _attributes(nodes):
            graphs += [(inner, NODE) for kind in GRAPHS for inner in fields(attribute, kind)]


def _attributes(nodes: Sequence[memoryview]) -> Iterator[memoryview]:
    return (attribute for node in nodes for attribute in fields(node, ATTRIBUTE))


def _tensors(model: memoryview) -> Iterator[memoryview]:
    """Yield every tensor in initializers and attributes; sparse tensors as their two parts."""
    for graph in fields(model, GRAPH):
        for sparse in fields(graph, SPARSE_INITIALIZER):
            yield from (*fields(sparse, 1), *fields(sparse, 2))
    for nodes, initializers in _graphs(model):
        yield from initializers
        for attribute in _attributes(nodes):
            for kind in TENSORS:
                yield from fields(attribute, kind)
            for kind in SPARSE_TENSORS:
                for sparse in fields(attribute, kind):
                    yield from (*fields(sparse, 1), *fields(sparse, 2))


def _external(tensor: memoryview) -> External | None:
    entries = {_last(entry, 1): _last(entry, 2) for entry in fields(tensor, EXTERNAL_DATA)}
    if "location" not in entries:
        return None
    return External(entries["location"], _size(entries.get("offset", "")) + _size(entries.get("length", "")))


def _size(digits: str) -> int:
    """Parse a number of bytes; an invalid one becomes larger than any file."""
    return int(digits or "0") if re.fullmatch(r"\d{0,20}", digits, re.ASCII) else sys.maxsize


def _last(message: memoryview, number: int) -> str:
    found = [*fields(message, number)]
    return text(found[-1]) if found else ""


def _made(nodes: Sequence[memoryview], initializers: Sequence[memoryview]) -> int:
    """Count the elements of the constants that nodes create; nodes of inner graphs may read values of outer graphs."""
    kinds = [(_last(node, OPERATOR), node) for node in nodes]
    makers = [(kind, node) for kind, node in kinds if kind in MAKERS]
    made = sum(_count(_ints(node, "shape")) for kind, node in kinds if kind in RANDOM)
    wanted = {name for kind, node in makers if (name := _input(node, MAKERS[kind]))}
    shapes = {name: _values(tensor) for tensor in initializers if (name := _last(tensor, TENSOR_NAME)) in wanted}
    for kind, node in kinds:
        if kind == "Constant" and (name := _last(node, OUTPUT)) in wanted:
            held = [tensor for attribute in _attributes([node]) for tensor in fields(attribute, TENSORS[0])]
            shapes[name] = _values(held[-1]) if held else _ints(node, "value_ints")
    named = [shapes.get(_input(node, MAKERS[kind])) for kind, node in makers]
    return made + sum(_count(shape) for shape in named if shape is not None)


def _input(node: memoryview, index: int) -> str:
    names = [*fields(node, INPUT)]
    return text(names[index]) if index < len(names) else ""


def _ints(node: memoryview, name: str) -> list[int]:
    """Return an attribute that is a list of integers."""
    named = (attribute for attribute in _attributes([node]) if _last(attribute, ATTRIBUTE_NAME) == name)
    return [number for attribute in named for number in numbers(attribute, ATTRIBUTE_INTS)]


def _values(tensor: memoryview) -> list[int]:
    """Return the numbers in an int64 tensor, the type of shapes."""
    raw = b"".join(map(bytes, fields(tensor, TENSOR_RAW)))
    if raw:
        return [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]
    return [*numbers(tensor, TENSOR_INT64)]


def _count(shape: Sequence[int]) -> int:
    return math.prod(max(size, 1) for size in shape)
