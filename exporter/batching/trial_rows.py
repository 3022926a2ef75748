"""Rows to try a model with: rows of the samples, and made ones that are very different and still valid.

A row is a set of inputs whose first axes are one long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from demi.tensors import Array, DType, Feeds, TensorSpec

LARGE = 1000.0
"""How many times larger than a sample's the floats of a row are that would drown others."""

MOST_SETS = 64
"""How many sets of samples are looked through."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row, and whether it was made up: such a row may be nothing the model was trained for."""

    feeds: Feeds
    made: bool = False


def rows_to_try(specs: Sequence[TensorSpec], sets: Sequence[Feeds], most: int = 2) -> list[Row]:
    """At most `most` different rows of the samples, all of one shape, and behind them the made ones."""
    sets = sets[:MOST_SETS]
    alike = _largest_group(_different(_rows_of(sets)))
    if not alike:
        return []
    found = alike[:most]
    seen = {spec.name: _values_of(spec.name, alike) for spec in specs}
    made = (
        {spec.name: make(spec, found[0], seen[spec.name]) for spec in specs} for make in (_large, _smallest, _turned)
    )
    return [Row(feeds) for feeds in found] + [Row(feeds, True) for feeds in _different(made, found)]


def join_rows(rows: Sequence[Feeds]) -> Feeds:
    """Rows one below the other."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _rows_of(sets: Sequence[Feeds]) -> Iterable[Feeds]:
    """Every row of every set; where inputs have different numbers of rows, those that all of them have."""
    for feeds in sets:
        for at in range(min(len(array) for array in feeds.values())):
            yield {name: array[at : at + 1] for name, array in feeds.items()}


def _different(rows: Iterable[Feeds], known: Sequence[Feeds] = ()) -> list[Feeds]:
    """The rows without those that came before, or that are known."""
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
    """The rows of the shape that most of them have: only those can be put together."""
    groups: dict[tuple[tuple[int, ...], ...], list[Feeds]] = {}
    for row in rows:
        groups.setdefault(tuple(array.shape for array in row.values()), []).append(row)
    return max(groups.values(), key=len, default=[])


def _values_of(name: str, rows: Sequence[Feeds]) -> Array:
    """The different values of an input that is no float over all of its rows: other ones may not be valid.

    Only rows of one shape count: a length must not be that of a longer row.
    """
    arrays = [row[name].reshape(-1) for row in rows]
    return np.unique(np.concatenate(arrays)) if arrays[0].dtype.kind != "f" else arrays[0][:0]


def _large(spec: TensorSpec, row: Feeds, seen: Array) -> Array:
    """Floats that would drown all others, beside what else the row has; without floats, the samples' largest values.

    Rows that share an id, of a group say, may look at each other where others do not.
    """
    array = row[spec.name]
    if array.dtype.kind == "f":
        limit = np.finfo(array.dtype).max / 2
        return np.clip(_flipped(array).astype(np.float64) * LARGE + LARGE, -limit, limit).astype(array.dtype)
    return array if _has_floats(row) or not len(seen) else np.full_like(array, seen[-1])


def _smallest(spec: TensorSpec, row: Feeds, seen: Array) -> Array:
    """Zeros for floats; of other types, the samples' smallest values, for zero may be none of them."""
    array = row[spec.name]
    return np.full_like(array, seen[0]) if len(seen) else np.zeros_like(array)


def _turned(spec: TensorSpec, row: Feeds, seen: Array) -> Array:
    """The row back to front: other positions, the same values; a mask that hides its second half.

    A single id is the samples' next one where all inputs are single ids, for then nothing else would be another.
    """
    array = row[spec.name]
    if spec.dtype is not DType.BYTES and "mask" in spec.name.lower() and set(seen.tolist()) <= {0, 1}:
        hidden = array.reshape(-1).copy()
        hidden[(hidden.size + 1) // 2 :] = 0
        return hidden.reshape(array.shape)
    if len(seen) and all(each.size == 1 for each in row.values()):
        return np.full_like(array, seen[(int(np.searchsorted(seen, array.reshape(-1)[0])) + 1) % len(seen)])
    return _flipped(array)


def _has_floats(row: Feeds) -> bool:
    return any(array.dtype.kind == "f" for array in row.values())


def _flipped(row: Array) -> Array:
    return row.reshape(-1)[::-1].reshape(row.shape).copy()
