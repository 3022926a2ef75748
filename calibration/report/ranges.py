"""Ranges of tensors for a report: bounds, shares that half cannot hold, and a small histogram of exponents."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

from demi.calibration.profile import Range
from demi.float16 import HalfFormat

MOST = 40
"""Tensors in the table: those closest to the limits of half. `ranges.json` has all."""

BIAS = 127
"""Exponent bias of float32, as in `Range.exponents`."""

LOWEST, HIGHEST = -40, 24
"""Exponents of 2 that a histogram shows for FP16; those beyond are counted in its first and last column."""

COLUMN, HEIGHT = 3, 22
"""Width of a column and height of a histogram, in pixels."""


@dataclass(frozen=True, slots=True)
class RangeRow:
    """One tensor: its bounds, the share of its non-zero values beyond half's limits, and its histogram as SVG."""

    tensor: str
    low: float
    high: float
    overflows: float
    """Share of its values that become infinite."""
    subnormal: float
    """Share of its values below half's smallest normal number, where half has fewer digits."""
    histogram: str


def range_rows(ranges: Mapping[str, Range], fmt: HalfFormat) -> list[RangeRow]:
    """Return the tensors closest to the limits of `fmt`, closest first: large ones by their largest value, then by the
    share of values that are too small."""
    rows = [_row(name, found, fmt) for name, found in ranges.items() if sum(found.exponents)]
    return sorted(rows, key=lambda row: -_closeness(row, fmt))[:MOST]


def _row(name: str, found: Range, fmt: HalfFormat) -> RangeRow:
    total = sum(found.exponents)
    limit, normal = _bin(fmt.max), _bin(fmt.smallest_normal)
    return RangeRow(
        name,
        found.low,
        found.high,
        sum(found.exponents[limit + 1 :]) / total,
        sum(found.exponents[:normal]) / total,
        histogram(found, fmt, name),
    )


def _closeness(row: RangeRow, fmt: HalfFormat) -> float:
    return max(max(abs(row.low), abs(row.high)) / fmt.max, row.subnormal)


def _bin(value: float) -> int:
    """Return the bin of a magnitude in `Range.exponents`, which holds float32's exponents."""
    exponent = BIAS - 1
    while 2.0 ** (exponent + 1 - BIAS) <= value:
        exponent += 1
    while 2.0 ** (exponent - BIAS) > value:
        exponent -= 1
    return max(exponent, 0)


def histogram(found: Range, fmt: HalfFormat, name: str) -> str:
    """Return an SVG element with a column for each power of 2; columns outside half's normal numbers are coloured.

    Widths and heights are in pixels; the tallest column has the full height.
    """
    first, last = max(LOWEST + BIAS, 0), min(HIGHEST + BIAS, len(found.exponents) - 1)
    counts = list(found.exponents[first : last + 1])
    counts[0] += sum(found.exponents[:first])
    counts[-1] += sum(found.exponents[last + 1 :])
    tallest, normal, limit = max(counts), _bin(fmt.smallest_normal), _bin(fmt.max)
    columns = []
    for place, count in enumerate(counts):
        if count:
            height = max(1.0, HEIGHT * count / tallest)
            colour = "half" if normal <= first + place <= limit else "bad"
            columns.append(
                f'<rect x="{place * COLUMN}" y="{HEIGHT - height:.1f}" width="{COLUMN - 1}" height="{height:.1f}" '
                f'fill="var(--{colour})"/>'
            )
    edges = [
        f'<path d="M{(edge - first) * COLUMN - 0.5} 0v{HEIGHT}"/>'
        for edge in (normal, limit + 1)
        if first < edge <= last
    ]
    width = len(counts) * COLUMN
    label = html.escape(f"values of {name} by power of 2")
    return (
        f'<svg role="img" aria-label="{label}" class="spark" viewBox="0 0 {width} {HEIGHT}" width="{width}" '
        f'height="{HEIGHT}">{"".join(columns)}<g stroke="var(--muted)" stroke-dasharray="2 2">{"".join(edges)}</g></svg>'
    )
