"""Range profile: the values that each tensor takes over the samples, saved in the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
            exponents=tuple(a + b for a, b in zip(self.exponents, other.exponents, strict=True)),
        )

    def quantile(self, share: float) -> float:
        """Return a magnitude that `share` of the non-zero elements do not exceed, within a factor of two."""
        total = sum(self.exponents)
        if not total:
            return 0.0
        reached = np.cumsum(self.exponents)
        bin_ = int(np.searchsorted(reached, share * total))
        return float(min(2.0 ** (bin_ + 1 - _BIAS), self.largest))


COUNTED = 1 << 17
"""About how many exponents of one array are counted: enough for any quantile that somebody reads off a histogram."""

BLOCK = 1 << 16
"""Elements per block, few enough to stay in a core's cache."""

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITE = np.uint32(0x7F800000)
"""Bits of float32 infinity; the bits of NaN are larger."""


def range_of(values: Array) -> Range:
    """Return the Range of an array; float types other than float32 are converted."""
    values = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    found = Range()
    step = 1 + values.size // COUNTED
    for start in range(0, values.size, BLOCK):
        found = found.merge(_of_block(values[start : start + BLOCK], step, may_be_whole=found.integer_valued))
    return replace(found, elements_per_set=values.size)


def _of_block(values: Array, step: int, *, may_be_whole: bool) -> Range:
    """The Range of a few elements, in as few passes over them as possible.

    Every `step`-th exponent is counted. Whole numbers are looked for where all elements before `may_be_whole`.
    """
    count, nans, infinities = values.size, 0, 0
    bits = values.view(np.uint32) & _MAGNITUDE
    if bits.max() >= _INFINITE:
        nans = int(np.count_nonzero(bits > _INFINITE))
        infinities = int(np.count_nonzero(bits == _INFINITE))
        values = values[bits < _INFINITE]
        bits = values.view(np.uint32) & _MAGNITUDE
    zeros = int(values.size - np.count_nonzero(bits))
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    return Range(
        low=low,
        high=high,
        largest=max(abs(low), abs(high)),
        smallest=_smallest(bits) if zeros < values.size else 0.0,
        count=count,
        zeros=zeros,
        nans=nans,
        infinities=infinities,
        integer_valued=may_be_whole and bool(np.array_equal(values, np.rint(values))),
        elements_per_set=count,
        exponents=_exponents(bits[::step]),
    )


def _exponents(bits: Array) -> tuple[int, ...]:
    """Count these magnitudes by exponent, zeros left out."""
    counts = np.bincount((bits >> np.uint32(23)).astype(np.intp), minlength=256)
    if counts[0]:  # subnormals among zeros
        counts[0] = np.count_nonzero(bits[bits < (1 << 23)])
    return tuple(counts.tolist())


def _smallest(bits: Array) -> float:
    """The smallest magnitude but zero, which becomes the largest number when one is taken from it."""
    return float(((bits - np.uint32(1)).min() + np.uint32(1)).view(np.float32))


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
