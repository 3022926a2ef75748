"""Requests joined along the batch axis into one run's inputs, and its outputs split again: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from demi.errors import InferenceError
from demi.tensors import Feeds


def concatenate(parts: Sequence[Feeds]) -> Feeds:
    """The same tensors of several parts, one below the other along axis 0, aligned as a runtime needs them.

    A single part is given back as it is, without a copy, where it is aligned already.
    """
    if len(parts) == 1:
        return {name: values if values.flags.aligned else values.copy() for name, values in parts[0].items()}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def cut(tensors: Feeds, start: int, stop: int) -> Feeds:
    """Rows `start` to `stop` of every tensor, without a copy."""
    return {name: values[start:stop] for name, values in tensors.items()}


def split(outputs: Feeds, rows: Sequence[int]) -> list[Feeds]:
    """A run's outputs as one set for each part, which have that many rows each; without a copy.

    Raises InferenceError when an output does not have a row for each row of the inputs.
    """
    total = sum(rows)
    for name, values in outputs.items():
        if values.ndim == 0 or values.shape[0] != total:
            raise InferenceError(f"output `{name}` has shape {list(values.shape)} for a batch of {total} rows")
    result = []
    start = 0
    for count in rows:
        result.append(cut(outputs, start, start + count))
        start += count
    return result
