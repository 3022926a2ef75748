"""Stacking: join requests along the batch axis and split the outputs again. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from demi.errors import InferenceError
from demi.tensors import Feeds


def concatenate(parts: Sequence[Feeds]) -> Feeds:
    """Return the tensors of several parts joined along axis 0, aligned as runtimes require.

    A single part is returned as it is, without a copy unless a tensor is unaligned.
    """
    if len(parts) == 1:
        return {name: values if values.flags.aligned else values.copy() for name, values in parts[0].items()}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def one_row(tensors: Feeds) -> Feeds:
    """Return a row of zeros or empty strings for tensors without rows: some kernels corrupt memory in an empty batch."""
    return {
        name: np.full((1, *values.shape[1:]), b"" if values.dtype == object else 0, values.dtype)
        for name, values in tensors.items()
    }


def cut(tensors: Feeds, start: int, stop: int) -> Feeds:
    """Return rows `start` to `stop` of every tensor, without a copy."""
    return {name: values[start:stop] for name, values in tensors.items()}


def split(outputs: Feeds, rows: Sequence[int]) -> list[Feeds]:
    """Split a run's outputs into one set per part, with `rows[i]` rows each. Makes no copy.

    Raises InferenceError if an output does not have one row for each row of the inputs.
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
