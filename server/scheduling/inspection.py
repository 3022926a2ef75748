"""Inspection of batches: inputs outside the calibrated ranges, and outputs that are NaN or infinite.

It runs on the CPU, on whole batches, and takes microseconds. The requests of a batch are inspected one by one only if
the batch as a whole is conspicuous.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from demi.server.scheduling.job import Part
from demi.tensors import Array, Feeds

MARGIN = 1.5
"""Inputs beyond 1.5 times the largest calibrated magnitude count as drift: the margin that plans are made with."""

MAX_ELEMENTS = 262_144
"""Elements of an input inspected per batch: about 0.1 ms, whatever the size of the batch."""

FEW_ELEMENTS = 1024
"""Of so few elements each is looked at: that takes less time than changing NumPy's handling of overflows for their sum."""

_FP16_EXPONENT = np.uint16(0x7C00)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Range of an input that does not count as drift."""

    low: float
    high: float

    @classmethod
    def around(cls, low: float, high: float) -> Bounds:
        """Return the calibrated range widened on both sides by `MARGIN - 1` times the largest magnitude."""
        room = (MARGIN - 1) * max(abs(low), abs(high))
        return cls(low - room, high + room)

    def contain(self, values: Array) -> bool:
        """Return whether all values are within the bounds; NaN never is."""
        return not values.size or (self.low <= float(values.min()) and float(values.max()) <= self.high)


@dataclass(frozen=True, slots=True)
class Inspection:
    """Bounds of inputs by name, and the names of outputs that must be finite. Inspects nothing by default."""

    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    finite: Collection[str] = ()

    def check_inputs(self, parts: Sequence[Part], joined: Feeds) -> None:
        """Mark the requests with an input outside its bounds."""
        for name, bounds in self.bounds.items():
            if not bounds.contain(_first(joined[name])):
                for part in parts:
                    if not bounds.contain(_first(part.feeds[name])):
                        part.job.outside.add(name)

    def check_outputs(self, parts: Sequence[Part], results: Feeds, split: Sequence[Feeds]) -> None:
        """Mark the requests with a non-finite output. `results` is the whole batch, `split` the outputs of each part."""
        for name in self.finite:
            if name in results and not is_finite(results[name]):
                for part, outputs in zip(parts, split, strict=True):
                    if not is_finite(outputs[name]):
                        part.job.not_finite.add(name)


def is_finite(values: Array) -> bool:
    """Return whether every float element is finite; True for other dtypes, BF16 included (carried as integers)."""
    if values.dtype.kind != "f":
        return True
    if values.dtype == np.float16:  # faster than np.isfinite, which converts every element
        return not np.any((values.view(np.uint16) & _FP16_EXPONENT) == _FP16_EXPONENT)
    if values.size <= FEW_ELEMENTS:
        return int(np.count_nonzero(np.isfinite(values))) == values.size
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()  # one pass without a temporary array; the sum can overflow though every element is finite
    return bool(np.isfinite(total)) or bool(np.isfinite(values).all())


def same_non_finite(half: Feeds, fp32: Feeds, names: frozenset[str]) -> bool:
    """Return whether these outputs are NaN and infinite in the same elements in FP32: half is not the cause then."""
    return all(
        half[name].shape == fp32[name].shape
        and np.array_equal(np.isnan(half[name]), np.isnan(fp32[name]))
        and np.array_equal(np.isinf(half[name]), np.isinf(fp32[name]))
        for name in names
    )


def _first(values: Array) -> Array:
    """Return the first rows of a large array: about `MAX_ELEMENTS` elements, at least one row."""
    if values.size <= MAX_ELEMENTS or not values.ndim:
        return values
    return values[: max(1, MAX_ELEMENTS * len(values) // values.size)]
