"""Errors of inner tensors: half beside FP32, and the worst over several samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from demi.accuracy.compare import relative_l2
from demi.tensors import Array

NORMAL = 1e-10
"""A norm above which errors that vanish when float32 squares them are below 1e-8 of it."""


@dataclass(frozen=True, slots=True)
class TensorError:
    """Error of one inner tensor: relative L2 (infinite if only FP32 is finite), and the largest difference."""

    relative: float
    max_abs: float
    as_number: float | None = None
    """For integers: their relative L2 as numbers."""


def worse_of(known: TensorError | None, new: TensorError) -> TensorError:
    """Return the larger of two errors, field by field."""
    if known is None:
        return new
    as_number = None if new.as_number is None else max(known.as_number or 0.0, new.as_number)
    return TensorError(max(known.relative, new.relative), max(known.max_abs, new.max_abs), as_number)


def tensor_error(reference: Array, measured: Array) -> TensorError:
    """Return the error of one tensor; even a single wrong integer or boolean counts as a large one."""
    if reference.shape != measured.shape:
        return TensorError(math.inf, math.inf)
    if reference.dtype.kind != "f":
        wrong = int(np.count_nonzero(reference != measured))
        return TensorError(max(math.sqrt(wrong / max(reference.size, 1)), 0.1) if wrong else 0.0, float(wrong > 0))
    with np.errstate(invalid="ignore"):  # infinity beside infinity
        gap = np.subtract(reference, measured)
    error, size = float(np.linalg.norm(gap)), float(np.linalg.norm(reference))
    if math.isfinite(error) and math.isfinite(size) and size > NORMAL:  # float32 squares neither overflow nor vanish
        return TensorError(error / size, float(np.abs(gap).max(initial=0.0)))
    finite = np.isfinite(reference) & np.isfinite(measured)
    largest = np.abs(gap, where=finite, out=np.zeros_like(reference)).max(initial=0.0)
    return TensorError(relative_l2(reference, measured), float(largest))
