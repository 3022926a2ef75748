"""Rows for the trial of a model: rows of the samples, and synthetic ones that are very different and still valid.

A row is a set of inputs whose first axes have length 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from demi.tensors import Array, DType, Feeds, TensorSpec

LARGE = 1000.0
"""Factor from a sample's floats to those of the row that would dominate any sum over rows."""

MOST_SETS = 64
"""Maximum sets of samples to search for rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row; a synthetic one may be unlike any input that the model was trained for."""

    feeds: Feeds
    synthetic: bool = False


def rows_to_try(specs: Sequence[TensorSpec], sets: Sequence[Feeds], most: int = 2) -> list[Row]:
    """Return at most `most` different rows of the samples, all of one shape, followed by the synthetic ones."""
    sets = sets[:MOST_SETS]
    alike = _largest_group(_distinct(_rows_of(sets)))
    if not alike:
        return []
    found = alike[:most]
    seen = {spec.name: _values_of(spec.name, alike) for spec in specs}
    synthetic = (
        {spec.name: make(spec, found[0], seen[spec.name]) for spec in specs}
        for make in (_large, _smallest, _reversed_row)
    )
    return [Row(feeds) for feeds in found] + [Row(feeds, True) for feeds in _distinct(synthetic, found)]


def join_rows(rows: Sequence[Feeds]) -> Feeds:
    """Join rows into one batch."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _rows_of(sets: Sequence[Feeds]) -> Iterable[Feeds]:
    """Yield every row of every set, up to the smallest number of rows of its inputs."""
    for feeds in sets:
        for at in range(min(len(array) for array in feeds.values())):
            yield {name: array[at : at + 1] for name, array in feeds.items()}


def _distinct(rows: Iterable[Feeds], known: Sequence[Feeds] = ()) -> list[Feeds]:
    """Return the rows without repetitions and without `known` ones."""
    seen = {_identity(row) for row in known}
    found = []
    for row in rows:
        if (identity := _identity(row)) not in seen:
            seen.add(identity)
            found.append(row)
    return found


def _identity(row: Feeds) -> tuple[object, ...]:
    return tuple(
        (array.shape, tuple(array.flat) if array.dtype == object else array.tobytes()) for array in row.values()
    )


def _largest_group(rows: Sequence[Feeds]) -> list[Feeds]:
    """Return the rows of the most frequent shape: only rows of one shape can be joined."""
    groups: dict[tuple[tuple[int, ...], ...], list[Feeds]] = {}
    for row in rows:
        groups.setdefault(tuple(array.shape for array in row.values()), []).append(row)
    return max(groups.values(), key=len, default=[])


def _values_of(name: str, rows: Sequence[Feeds]) -> Array:
    """Return the distinct values of an input over the rows, which all have one shape; none for floats.

    Values that no sample has may not be valid, and a length from a longer row would not be either.
    """
    arrays = [row[name].reshape(-1) for row in rows]
    return np.unique(np.concatenate(arrays)) if arrays[0].dtype.kind != "f" else arrays[0][:0]


def _large(spec: TensorSpec, row: Feeds, seen: Array) -> Array:
    """Return floats that would dominate any sum over rows; in a row without floats, the samples' largest values.

    Other types keep the row's values beside floats: rows with the same id, such as a group's, may depend on each other
    even if other rows do not.
    """
    array = row[spec.name]
    if array.dtype.kind == "f":
        limit = np.finfo(array.dtype).max / 2
        return np.clip(_backwards(array).astype(np.float64) * LARGE + LARGE, -limit, limit).astype(array.dtype)
    return array if _has_floats(row) or not len(seen) else np.full_like(array, seen[-1])


def _smallest(spec: TensorSpec, row: Feeds, seen: Array) -> Array:
    """Return zeros for floats; for other types the samples' smallest values, because zero may not be valid."""
    array = row[spec.name]
    return np.full_like(array, seen[0]) if len(seen) else np.zeros_like(array)


def _reversed_row(spec: TensorSpec, row: Feeds, seen: Array) -> Array:
    """Return the values of the row in reverse order; for a mask, one that hides the second half.

    If all inputs are single elements, return the samples' next value: reversal would change nothing.
    """
    array = row[spec.name]
    if spec.dtype is not DType.BYTES and "mask" in spec.name.lower() and set(seen.tolist()) <= {0, 1}:
        hidden = array.reshape(-1).copy()
        hidden[(hidden.size + 1) // 2 :] = 0
        return hidden.reshape(array.shape)
    if len(seen) and all(each.size == 1 for each in row.values()):
        return np.full_like(array, seen[(int(np.searchsorted(seen, array.reshape(-1)[0])) + 1) % len(seen)])
    return _backwards(array)


def _has_floats(row: Feeds) -> bool:
    return any(array.dtype.kind == "f" for array in row.values())


def _backwards(row: Array) -> Array:
    return row.reshape(-1)[::-1].reshape(row.shape).copy()
