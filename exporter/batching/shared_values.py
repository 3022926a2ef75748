"""Find values that all rows of a batch share, which a trial of some rows may not notice.

`any(ids == 99)` is one value for the whole batch. It chooses another branch for every row as soon as one row holds that
id, and a trial whose samples never hold it sees rows that do not depend on each other.

Shapes tell such values apart: the model runs on two and on three equal rows. A tensor that is computed from the values of
rows, and is equally large in both runs, belongs to no row.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from demi.calibration.graph_pieces import constant_number
from demi.exporter.batching.row_shapes import RowShapes
from demi.exporter.batching.row_values import nodes_from_rows

ALONG_AN_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "TopK": -1, "LpNormalization": -1, "CumSum": 0}
"""Operators that compute from several elements along one axis and keep it, with the axis if none is given."""

WITH_AXES = ("Reduce", "ArgMax", "ArgMin", "MeanVarianceNormalization")
"""Beginnings of the names of operators that compute from several elements along the axes that they are given."""

IN_SEQUENCE = frozenset({"RNN", "GRU", "LSTM", "Loop", "Scan"})
"""Operators that take the elements of their first axis one after the other."""


def shared_value(model: ir.Model, shapes: RowShapes) -> str:
    """Return a value of a prepared FP32 model that all rows of a batch share, in words; empty if there is none."""
    from_rows = {value.name or "" for value in model.graph.inputs}
    for node, made, inside in nodes_from_rows(model.graph, from_rows):
        if name := next(filter(shapes.is_shared_inside, made), "") if inside else _shared(node, made, shapes):
            return f"`{name}` ({node.op_type}) is computed from all rows of a batch together"
        if not inside and (name := _along_selected(node, shapes)):
            return (
                f"`{name}` ({node.op_type}) is computed from the rows that the model selects, and it selects none of the "
                f"samples'"
            )
    return ""


def _shared(node: ir.Node, made: Sequence[str], shapes: RowShapes) -> str:
    """Return the output of a node in which rows are mixed: one without an axis for rows, with two, or along it."""
    for name in made:
        axes = shapes.axes(name)
        if axes is not None and len(axes) != 1:
            return name
    first = _first(node)
    rows = shapes.axes(first)
    if node.op_type in ALONG_AN_AXIS and rows and _axis(node) % shapes.rank(first) in rows:
        return node.outputs[0].name or ""
    return ""


def _along_selected(node: ir.Node, shapes: RowShapes) -> str:
    """Return the output of a node that computes along the first axis of rows that were selected, of which there are none."""
    first = _first(node)
    if not shapes.is_empty(first):
        return ""
    rank = max(shapes.rank(first), 1)
    if node.op_type in ALONG_AN_AXIS:
        along = _axis(node) % rank == 0
    elif node.op_type.startswith(WITH_AXES):
        axes = _axes(node)
        along = axes is None or any(axis % rank == 0 for axis in axes)
    else:
        along = node.op_type in IN_SEQUENCE
    return node.outputs[0].name or "" if along else ""


def _first(node: ir.Node) -> str:
    return node.inputs[0].name or "" if node.inputs and node.inputs[0] is not None else ""


def _axis(node: ir.Node) -> int:
    given = node.attributes.get("axis")
    if given is not None:
        return given.as_int()
    if node.op_type == "CumSum":
        return constant_number(node.inputs[1]) or 0
    return ALONG_AN_AXIS[node.op_type]


def _axes(node: ir.Node) -> list[int] | None:
    """Return the axes of a reduction; None if it is over all, or not known."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    if node.op_type.startswith("Arg"):
        return [node.attributes.get_int("axis", 0) or 0]
    value = node.inputs[1] if len(node.inputs) > 1 else None
    return value.const_value.numpy().ravel().tolist() if value is not None and value.const_value is not None else None
