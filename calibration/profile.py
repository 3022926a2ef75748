"""Range profile: the values that each tensor takes over the samples, saved in the bundle."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

import msgspec
import numpy as np

from demi.errors import InputError
from demi.tensors import Array

SCHEMA = 1
"""The number of the profile's file format."""

_BIAS = 127
"""Exponent bias of float32: bin e of the histogram counts magnitudes in [2^(e-127), 2^(e-126))."""


@dataclass(frozen=True, slots=True)
class Range:
    """Values of one float tensor: bounds of its finite elements, and a histogram of their exponents."""

    low: float = 0.0
    high: float = 0.0
    largest: float = 0.0
    """The largest finite magnitude."""
    smallest: float = 0.0
    """The smallest non-zero magnitude; 0 when all elements are 0."""
    count: int = 0
    zeros: int = 0
    nans: int = 0
    infinities: int = 0
    integer_valued: bool = True
    """True if every finite element is an integer."""
    elements_per_set: int = 0
    """The most elements in one set of inputs."""
    exponents: tuple[int, ...] = ()
    """Count of finite non-zero elements by float32 exponent: 256 bins, or empty. Of arrays with more than `COUNTED`
    elements, an even selection is counted."""

    def merge(self, other: Range) -> Range:
        """Return the range of both. Associative and commutative, so samples may be observed in any order."""
        if not self.count or not other.count:
            return other if not self.count else self
        bounded = [each for each in (self, other) if each.count > each.nans + each.infinities]
        return Range(
            low=min((each.low for each in bounded), default=0.0),
            high=max((each.high for each in bounded), default=0.0),
            largest=max(self.largest, other.largest),
            smallest=min((s for s in (self.smallest, other.smallest) if s > 0), default=0.0),
            count=self.count + other.count,
            zeros=self.zeros + other.zeros,
            nans=self.nans + other.nans,
            infinities=self.infinities + other.infinities,
            integer_valued=self.integer_valued and other.integer_valued,
            elements_per_set=max(self.elements_per_set, other.elements_per_set),
            exponents=tuple(map(int.__add__, self.exponents, other.exponents)),
        )

    def times_two_to(self, exponent: int) -> Range:
        """Return the range of the values times 2^exponent, none of which is subnormal or infinite then."""
        shift = -exponent if exponent < 0 else 256 - exponent
        counts = (*self.exponents[shift:], *self.exponents[:shift])  # the bins at the end that wraps around are empty
        return replace(
            self,
            low=math.ldexp(self.low, exponent),
            high=math.ldexp(self.high, exponent),
            largest=math.ldexp(self.largest, exponent),
            smallest=math.ldexp(self.smallest, exponent),
            integer_valued=self.integer_valued and exponent >= 0,
            exponents=counts,
        )

    def quantile(self, share: float) -> float:
        """Return a magnitude that `share` of the non-zero elements do not exceed, within a factor of two."""
        return self.quantiles((share,))[0]

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Return the quantile of each of these shares."""
        reached = list(accumulate(self.exponents))
        if not reached or not reached[-1]:
            return [0.0 for _ in shares]
        bins = (bisect_left(reached, share * reached[-1]) for share in shares)
        return [min(2.0 ** (bin_ + 1 - _BIAS), self.largest) for bin_ in bins]


COUNTED = 1 << 15
"""About how many exponents of one array are counted: enough for any quantile that somebody reads off a histogram."""

BLOCK = 1 << 16
"""Elements per block, few enough to stay in a core's cache."""

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_ONE = np.uint32(1)


def range_of(values: Array) -> Range:
    """Return the Range of an array; float types other than float32 are converted."""
    values = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    found = Range()
    for start in range(0, values.size, BLOCK):
        found = found.merge(_of_block(values[start : start + BLOCK], may_be_whole=found.integer_valued))
    if not found.count:
        return found
    return replace(found, elements_per_set=values.size, exponents=_exponents(values[:: values.size // COUNTED | 1]))


def _of_block(values: Array, *, may_be_whole: bool) -> Range:
    """The Range of a few elements without their exponents, in as few passes over them as possible.

    Whole numbers are looked for where all elements before `may_be_whole`.
    """
    count, nans, infinities = values.size, 0, 0
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        nans, infinities = int(np.count_nonzero(np.isnan(values))), int(np.count_nonzero(np.isinf(values)))
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    smallest, zeros = _nearest_to_zero(values, low, high)
    return Range(
        low=low,
        high=high,
        largest=max(abs(low), abs(high)),
        smallest=smallest,
        count=count,
        zeros=zeros,
        nans=nans,
        infinities=infinities,
        integer_valued=may_be_whole and bool(np.array_equal(values, np.rint(values))),
        elements_per_set=count,
    )


def _nearest_to_zero(values: Array, low: float, high: float) -> tuple[float, int]:
    """Return the smallest magnitude but zero (0 without one), and the number of zeros, of finite values."""
    if low > 0 or high < 0:
        return (low if low > 0 else -high), 0
    bits = values.view(np.uint32) & _MAGNITUDE
    if values.size and (least := bits.min()) > 0:
        return _as_float(least), 0
    zeros = values.size - int(np.count_nonzero(bits))
    if zeros == values.size:
        return 0.0, zeros
    bits -= _ONE  # zero becomes the largest number
    return _as_float(bits.min() + _ONE), zeros


def _as_float(bits: np.uint32) -> float:
    return float(bits.view(np.float32))


def _exponents(values: Array) -> tuple[int, ...]:
    """Count these elements by exponent, except for zeros and those that are not finite."""
    bits = values.view(np.uint32) & _MAGNITUDE
    counts = np.bincount((bits >> np.uint32(23)).astype(np.intp), minlength=256)
    counts[255] = 0
    if counts[0]:  # subnormals among zeros
        counts[0] = np.count_nonzero(bits[bits < (1 << 23)])
    return tuple(counts.tolist())


@dataclass(frozen=True, slots=True)
class RangeProfile:
    """The Range of every observed float tensor, by name, and the samples they come from."""

    origin: str = ""
    sets: int = 0
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def __getitem__(self, tensor: str) -> Range:
        return self.ranges[tensor]

    def get(self, tensor: str | None) -> Range | None:
        """Return the tensor's range; None when it was not observed (inside a loop's body, say)."""
        return self.ranges.get(tensor or "")

    def merge(self, other: RangeProfile) -> RangeProfile:
        """Return the profile of both collections of samples."""
        names = {**self.ranges, **other.ranges}
        merged = {name: self.ranges.get(name, Range()).merge(other.ranges.get(name, Range())) for name in names}
        origin = "; ".join(dict.fromkeys(part for part in (self.origin, other.origin) if part))
        return RangeProfile(origin, self.sets + other.sets, merged)

    def save(self, path: Path) -> None:
        """Write the profile as JSON."""
        path.write_bytes(msgspec.json.encode({"schema": SCHEMA, "profile": self}) + b"\n")


class _ProfileFile(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    profile: RangeProfile


def read_profile(path: Path) -> RangeProfile:
    """Read a profile from its JSON file. Raises InputError for a file that is not valid."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_ProfileFile)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the range profile cannot be read: {error}", where=str(path)) from error
    if document.schema != SCHEMA:
        raise InputError(
            f"the range profile cannot be read: it has schema {document.schema}; this Demi reads schema {SCHEMA}",
            where=str(path),
        )
    return document.profile
