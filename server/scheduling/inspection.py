"""A look at what goes through a model: inputs beyond what calibration saw, and answers that are not finite.

It runs beside the device, on whole batches, and costs microseconds; requests are looked at one by one only where a
batch gives reason to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from demi.server.scheduling.job import Part
from demi.tensors import Array, Feeds

MARGIN = 1.5
"""Inputs beyond this many times the largest magnitude of calibration count: the margin that plans are made with."""

LOOK_AT = 262_144
"""Elements of an input that are looked at in one batch: some 0.1 ms, whatever the batch's size."""

_FP16_EXPONENT = np.uint16(0x7C00)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The values of an input that are no news."""

    low: float
    high: float

    @classmethod
    def around(cls, low: float, high: float) -> Bounds:
        """The bounds around what calibration saw: `MARGIN - 1` times the largest magnitude wider on both sides."""
        room = (MARGIN - 1) * max(abs(low), abs(high))
        return cls(low - room, high + room)

    def hold(self, values: Array) -> bool:
        """Whether all values are within; NaN is not."""
        return not values.size or (self.low <= float(values.min()) and float(values.max()) <= self.high)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What to look at: the bounds of inputs by name, and the outputs that should be finite. Nothing, by default."""

    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    finite: Collection[str] = ()

    def look_at_inputs(self, parts: Sequence[Part], joined: Feeds) -> None:
        """Mark the requests with an input out of its bounds."""
        for name, bounds in self.bounds.items():
            if not bounds.hold(_first(joined[name])):
                for part in parts:
                    if not bounds.hold(_first(part.feeds[name])):
                        part.job.outside.add(name)

    def look_at_outputs(self, parts: Sequence[Part], results: Feeds, found: Sequence[Feeds]) -> None:
        """Mark the requests with an output that is not finite; `found` has each part's own outputs."""
        for name in self.finite:
            if name in results and not is_finite(results[name]):
                for part, outputs in zip(parts, found, strict=True):
                    if not is_finite(outputs[name]):
                        part.job.not_finite.add(name)


def is_finite(values: Array) -> bool:
    """Whether every float element is finite; True for other types. BF16 does not come here: it travels as integers."""
    if values.dtype.kind != "f":
        return True
    if values.dtype == np.float16:  # NumPy's own test converts every element
        return not np.any((values.view(np.uint16) & _FP16_EXPONENT) == _FP16_EXPONENT)
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()  # one pass without a temporary; a sum may overflow where no element does
    return bool(np.isfinite(total)) or bool(np.isfinite(values).all())


def _first(values: Array) -> Array:
    """The first rows of a large array."""
    if values.size <= LOOK_AT or not values.ndim:
        return values
    return values[: max(1, LOOK_AT * len(values) // values.size)]
