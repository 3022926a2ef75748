"""Find values that all rows of a batch share, which a trial of some rows may not notice.

`any(ids == 99)` is one value for the whole batch. It chooses another branch for every row as soon as one row holds that
id, and a trial whose samples never hold it sees rows that do not depend on each other.

Shapes tell such values apart: the model runs on two and on three equal rows. A tensor that is computed from the values of
rows, and is equally large in both runs, belongs to no row.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from demi.calibration.graph_pieces import constant_number, subgraphs_of
from demi.calibration.observe import probing
from demi.exporter.batching.trial_rows import join_rows
from demi.tensors import Feeds

SHAPES_ONLY = frozenset({"Shape", "Size", "EyeLike"})
"""Operators that read the shape of their input and none of its values."""

ALONG_AN_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "TopK": -1, "LpNormalization": -1, "CumSum": 0}
"""Operators that compute from several elements along one axis and keep it, with the axis if none is given."""

BATCHES = (2, 3)

Sizes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""The shapes of each tensor in batches of two and of three equal rows; empty tensors have none."""


def shared_value(model: ir.Model, row: Feeds) -> str:
    """Return a value of a prepared FP32 model that all rows of a batch share, in words; empty if there is none.

    `row` is a set of inputs of one row. Bodies of If, Loop and Scan are not searched. Raises DemiError where the model's
    inner tensors cannot be read.
    """
    sizes = _sizes(model, row)
    from_rows = {value.name for value in model.graph.inputs}
    for node in model.graph:
        if node.op_type in SHAPES_ONLY or from_rows.isdisjoint(_read(node)):
            continue
        from_rows.update(value.name for value in node.outputs)
        if name := _mixed(node, sizes):
            return f"`{name}` ({node.op_type}) is computed from all rows of a batch together"
    return ""


def _sizes(model: ir.Model, row: Feeds) -> Sizes:
    small, large = (join_rows([row] * count) for count in BATCHES)
    found: Sizes = {}
    with probing(model) as probe:
        shapes = [
            {
                name: array.shape
                for values in (feeds, *probe.read(feeds))
                for name, array in values.items()
                if array.size
            }
            for feeds in (small, large)
        ]
    for name in shapes[0].keys() & shapes[1].keys():
        found[name] = (shapes[0][name], shapes[1][name])
    return found


def _read(node: ir.Node) -> Iterator[str | None]:
    """Yield the names of what a node reads, and of what its bodies read."""
    yield from (value.name for value in node.inputs if value is not None)
    for body in subgraphs_of(node):
        for inner in body.all_nodes():
            yield from (value.name for value in inner.inputs if value is not None)


def _mixed(node: ir.Node, sizes: Sizes) -> str:
    """Return the output of a node in which rows are mixed: one without an axis for rows, with two, or along it."""
    for value in node.outputs:
        if value.name in sizes and len(_row_axes(value.name, sizes)) != 1:
            return value.name
    first = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
    if node.op_type in ALONG_AN_AXIS and first in sizes and first is not None:
        rank = len(sizes[first][0])
        if rank and _axis(node) % rank in _row_axes(first, sizes):
            return node.outputs[0].name or ""
    return ""


def _row_axes(name: str, sizes: Sizes) -> list[int]:
    """Return the axes of a tensor that grow with the rows of a batch."""
    small, large = sizes[name]
    if len(small) != len(large):
        return []
    return [axis for axis, (one, other) in enumerate(zip(small, large, strict=True)) if one != other]


def _axis(node: ir.Node) -> int:
    given = node.attributes.get("axis")
    if given is not None:
        return given.as_int()
    if node.op_type == "CumSum":
        return constant_number(node.inputs[1]) or 0
    return ALONG_AN_AXIS[node.op_type]
