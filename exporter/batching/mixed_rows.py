"""Find inner tensors in which a row's values depend on other rows, although no output shows it.

A branch that no sample takes may mix rows: `where(any(ids == 99, axis=1), roll(h, 1, axis=0), h)`. Both sides of a Where
are computed for every batch, so that the dependence is seen in the tensors behind the output. One row at a time is
exchanged for another, and each tensor may change in the place of that row only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from demi.calibration.observe import Probe, probing
from demi.exporter.batching.row_shapes import BATCHES, RowShapes
from demi.exporter.batching.trial_rows import join_rows
from demi.tensors import Array, Feeds

ROWS = BATCHES[-1]
"""Number of rows in a batch of this trial."""

CHANGED = 1e-3
"""Relative L2 from which the values of a place count as changed; those of an independent row do not change at all."""

FLOOR = 0.01
"""Places with a norm below this share of the mean norm are compared on that scale."""

SELECTING = frozenset({"NonZero", "Compress", "Unique", "NonMaxSuppression"})
"""Operators whose output has a place for whatever they select, and not for each row."""

SCATTERING = frozenset({"Scatter", "ScatterElements", "ScatterND"})
"""Operators that put selected values back in place."""


def mixed_rows(model: ir.Model, shapes: RowShapes, rows: Sequence[Feeds]) -> str:
    """Return an inner tensor of a prepared FP32 model in which rows are mixed, in words; empty if there is none.

    `rows` are different rows of inputs, at least two. Raises DemiError where the model does not run on them.
    """
    selected = _selected(model)
    batches = [join_rows([rows[at] for at in batch]) for batch in exchanges(len(rows))]
    mixed: set[str] = set()
    with probing(model) as probe:
        names = [name for name in probe.names if name not in selected and _is_by_rows(name, shapes)]
        for chunk in probe.chunks(names):
            mixed.update(_mixed_in(probe, chunk, batches, shapes))
    made = ((value.name or "", node.op_type) for node in model.graph for value in node.outputs)
    return next((f"a row of `{name}` ({kind}) depends on other rows" for name, kind in made if name in mixed), "")


def exchanges(count: int) -> list[list[int]]:
    """Return a batch of row numbers, and for each of its places the same batch with another row there."""
    batch = [at % count for at in range(ROWS)]
    others = [(row + 1) % count if count <= ROWS else ROWS for row in batch]
    return [batch, *([*batch[:at], other, *batch[at + 1 :]] for at, other in enumerate(others))]


def _selected(model: ir.Model) -> set[str]:
    """Return the tensors with a place for each value that the model selects, up to where they are put back."""
    found: set[str] = set()
    for node in model.graph:
        read = {value.name or "" for value in node.inputs if value is not None}
        if node.op_type in SELECTING or (node.op_type not in SCATTERING and read & found):
            found.update(value.name or "" for value in node.outputs)
    return found


def _is_by_rows(name: str, shapes: RowShapes) -> bool:
    """Return True if a tensor has one axis for rows, with as many places for each row."""
    axes = shapes.axes(name)
    return axes is not None and len(axes) == 1 and shapes.outer[name][-1][axes[0]] % ROWS == 0


def _mixed_in(probe: Probe, chunk: Sequence[str], batches: Sequence[Feeds], shapes: RowShapes) -> Iterator[str]:
    """Yield the tensors of a chunk in which a row changed the place of another."""
    first, *others = (probe.run(batch, chunk) for batch in batches)
    for name in chunk:
        axes = shapes.axes(name) or [0]
        if all(other[name].shape == shapes.outer[name][-1] for other in (first, *others)):
            changes = [_changed(first[name], other[name], axes[0]) for other in others]
            if not _are_own(changes):
                yield name


def _changed(before: Array, after: Array, axis: int) -> Array:
    """Return for each place along an axis, as bool[places], whether its values changed."""
    one, other = (np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in (before, after))
    if one.dtype.kind != "f":
        return np.asarray((one != other).any(axis=1))
    finite = np.isfinite(one) & np.isfinite(other)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        distance = np.where(finite & ~same, other.astype(np.float64) - one, 0.0)
    norms = np.linalg.norm(np.where(finite, one, 0.0).astype(np.float64), axis=1)
    scale = np.maximum(norms, FLOOR * norms.mean())
    return np.asarray((np.linalg.norm(distance, axis=1) > CHANGED * scale) | (~finite & ~same).any(axis=1))


def _are_own(changes: Sequence[Array]) -> bool:
    """Return True if each row changed its own places only: a row's places lie together, or every third one is its."""
    places = np.arange(len(changes[0]))
    for owner in (places // (len(places) // ROWS), places % ROWS):
        if all((owner[changed] == row).all() for row, changed in enumerate(changes)):
            return True
    return False
