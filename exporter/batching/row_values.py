"""Find what a model computes from the values of its inputs, and not from their shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

import onnx_ir as ir

from demi.calibration.graph_pieces import subgraphs_of

SHAPES_ONLY = frozenset({"Shape", "Size", "EyeLike"})
"""Operators that read the shape of their input and none of its values."""

_DECIDING = {"If": 1, "Loop": 2}
"""Number of first inputs that decide which nodes of the bodies run, and how often."""


def row_values(model: ir.Model) -> set[str]:
    """Return the names of the inputs and of the main graph's tensors that hold values of rows."""
    return _with_made(model.graph, {value.name or "" for value in model.graph.inputs})


def _with_made(graph: ir.Graph, from_rows: AbstractSet[str]) -> set[str]:
    """Return names of values of rows with those that a graph makes of them."""
    names = set(from_rows)
    for _ in nodes_from_rows(graph, names):
        pass
    return names


def nodes_from_rows(
    graph: ir.Graph, from_rows: set[str], *, inside: bool = False
) -> Iterator[tuple[ir.Node, list[str], bool]]:
    """Yield the nodes that compute from values of rows, and what they make of them; those of a body (True) come first.

    `from_rows` holds the names of values of rows; those that the graph makes are added.
    """
    for node in graph:
        if node.op_type in SHAPES_ONLY or from_rows.isdisjoint(_read(node)):
            continue
        for body in subgraphs_of(node):
            yield from nodes_from_rows(body, from_rows | _given_rows(node, body, from_rows), inside=True)
        made = _made_of_rows(node, from_rows)
        from_rows.update(made)
        yield node, made, inside


def _read(node: ir.Node) -> Iterator[str]:
    """Yield the names of what a node reads, and of what its bodies read."""
    yield from (value.name or "" for value in node.inputs if value is not None)
    for body in subgraphs_of(node):
        for inner in body.all_nodes():
            yield from (value.name or "" for value in inner.inputs if value is not None)


def _made_of_rows(node: ir.Node, from_rows: AbstractSet[str]) -> list[str]:
    """Return the outputs of a node that hold values of rows; a Loop that counts its turns beside them makes others."""
    outputs = [value.name or "" for value in node.outputs]
    bodies = subgraphs_of(node)
    decided = {value.name for value in node.inputs[: _DECIDING.get(node.op_type, 0)] if value is not None}
    if not bodies or decided & from_rows:
        return outputs
    found: set[str] = set()
    for body in bodies:
        made = _with_made(body, from_rows | _given_rows(node, body, from_rows))
        ends = [value.name or "" for value in body.outputs]
        if node.op_type == "Loop" and ends.pop(0) in made:
            return outputs
        found.update(name for name, end in zip(outputs, ends, strict=False) if end in made)
    return [name for name in outputs if name in found]


def _given_rows(node: ir.Node, body: ir.Graph, from_rows: AbstractSet[str]) -> set[str]:
    """Return the inputs of a Loop's or Scan's body that hold values of rows: from outside, or carried from its end."""
    counted = 2 if node.op_type == "Loop" else 0
    """Inputs of a Loop's body that are its own: the number of the turn, and the condition."""
    inner = [value.name or "" for value in body.inputs[counted:]]
    if not inner:
        return set()
    outer = [value.name if value is not None else "" for value in node.inputs[counted:]]
    found = {name for name, given in zip(inner, outer, strict=False) if given in from_rows}
    ends = [value.name for value in body.outputs[1 if counted else 0 :]]
    scanned = node.attributes.get_int("num_scan_inputs", 0) or 0
    carried = list(zip(inner[: len(inner) - scanned], ends, strict=False))
    while True:
        made = _with_made(body, from_rows | found)
        more = {name for name, end in carried if end in made} - found
        if not more:
            return found
        found |= more
