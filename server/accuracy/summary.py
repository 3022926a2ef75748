"""Summaries of comparisons with FP32: the sums and extremes that an accuracy verdict needs, which add up exactly.

The summary of two servers' comparisons is the sum of their summaries, to the last bit, in any order. Floating-point sums
would depend on the order, and the variance of squares as a difference of sums would cancel. So every sum is an integer:
a float is an integer times a power of two, and the smallest float of all is 2**-1074.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from demi.accuracy.compare import TensorDiff

_BITS = 1074
_ONE = 1 << _BITS
"""The number 1 in units of the smallest float."""


@dataclass(frozen=True, slots=True)
class Share:
    """Sum of shares from 0 to 1, such as rows that agree, and their count."""

    count: int = 0
    total: int = 0
    """In units of 2**-1074."""

    def __add__(self, other: Share) -> Share:
        return Share(self.count + other.count, self.total + other.total)

    @property
    def value(self) -> float:
        """The sum as a float."""
        return self.total / _ONE


@dataclass(frozen=True, slots=True)
class Summary:
    """Sum of the comparisons of one output. `+` gives the summary of both sides' comparisons."""

    count: int = 0
    """Comparisons."""
    infinite: int = 0
    """Comparisons whose relative L2 was NaN or infinite; the sums do not include them."""
    squares: int = 0
    """Sum of squares of the relative L2 error, in units of 2**-1074."""
    fourths: int = 0
    """Sum of fourth powers of the relative L2 error, in units of 2**-2148."""
    top1: Share = Share()
    agree: Share = Share()
    found: int = 0
    """Boxes compared."""
    changed: int = 0
    """Boxes that appeared, vanished or changed their class."""
    non_finite: int = 0
    wrong: int = 0
    """Elements that are not finite, or of an integer output that differs without a limit that allows it."""
    max_abs: float = 0.0
    steps: float = 0.0
    cosine: float = math.inf
    """The smallest cosine; infinite without a comparison."""

    def __add__(self, other: Summary) -> Summary:
        extremes = {"max_abs": max, "steps": max, "cosine": min}
        values: dict[str, Any] = {
            field.name: extremes.get(field.name, _add)(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)
        }
        return Summary(**values)

    @property
    def mean_square(self) -> float:
        """Mean of the squares of the relative L2 error; infinite if one error is."""
        return math.inf if self.infinite else _quotient(self.squares, self.count << _BITS)

    @property
    def variance(self) -> float:
        """Unbiased variance of those squares; 0 for a single comparison, infinite if one error is."""
        if self.infinite:
            return math.inf
        spread = self.count * self.fourths - self.squares * self.squares
        return _quotient(spread, (self.count * max(self.count - 1, 1)) << (2 * _BITS))


def summarize(diffs: Sequence[TensorDiff]) -> Summary:
    """Return the summary of one output's comparisons."""
    errors = [diff.relative_l2 for diff in diffs]
    squares = [_units(error * error) for error in errors if math.isfinite(error * error)]
    return Summary(
        count=len(diffs),
        infinite=len(diffs) - len(squares),
        squares=sum(squares),
        fourths=sum(square * square for square in squares),
        top1=_share(diff.top1 for diff in diffs),
        agree=_share(diff.agree for diff in diffs),
        found=sum(diff.found or 0 for diff in diffs),
        changed=sum(diff.changed for diff in diffs),
        non_finite=sum(diff.non_finite for diff in diffs),
        wrong=sum(diff.non_finite + diff.mismatched for diff in diffs),
        max_abs=max((diff.max_abs for diff in diffs), default=0.0),
        steps=max((diff.steps or 0.0 for diff in diffs), default=0.0),
        cosine=min((diff.cosine for diff in diffs), default=math.inf),
    )


def _share(shares: Iterable[float | None]) -> Share:
    known = [_units(share) for share in shares if share is not None]
    return Share(len(known), sum(known))


def _units(value: float) -> int:
    """Return a finite float as a multiple of 2**-1074, exactly."""
    numerator, denominator = value.as_integer_ratio()
    return numerator << (_BITS + 1 - denominator.bit_length())


def _quotient(numerator: int, denominator: int) -> float:
    """Return the correctly rounded quotient; infinite if it is beyond all floats, as a float sum would be."""
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf


def _add(one: int, other: int) -> int:
    return one + other
