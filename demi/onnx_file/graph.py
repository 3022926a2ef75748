"""Read the nodes of a model's main graph and how they are connected, since servers have no package that reads ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demi.onnx_file.protobuf import GRAPH, NODE, fields, text, view

INPUT, OUTPUT, NAME, OPERATOR = 1, 2, 3, 4
"""Field numbers of NodeProto in onnx.proto."""


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One node of a graph."""

    name: str
    op_type: str
    reads: tuple[int, ...]
    """Positions of the nodes whose outputs it reads, without repetition; inputs and weights of the model are left out."""
    outputs: tuple[str, ...] = ()
    """Names of the tensors that it makes."""


def read_graph(model: Path | bytes) -> list[GraphNode]:
    """Return the nodes of the main graph in order; those of graphs inside nodes are left out.

    Raises ValueError or IndexError for bytes that are not an ONNX model.
    """
    nodes = [node for graph in fields(view(model), GRAPH) for node in fields(graph, NODE)]
    producer = {text(name): index for index, node in enumerate(nodes) for name in fields(node, OUTPUT)}
    producer.pop("", None)  # an output that is left out
    return [
        GraphNode(
            _first(node, NAME) or f"{_first(node, OPERATOR)} {index}",
            _first(node, OPERATOR),
            tuple(dict.fromkeys(producer[name] for name in map(text, fields(node, INPUT)) if name in producer)),
            tuple(filter(None, map(text, fields(node, OUTPUT)))),
        )
        for index, node in enumerate(nodes)
    ]


def _first(node: memoryview, number: int) -> str:
    return next((text(value) for value in fields(node, number)), "")
