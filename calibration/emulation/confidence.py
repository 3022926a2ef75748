"""How far the error of new inputs may be from that of the samples."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np

STUDENT = (
    (1, 6.31),
    (2, 2.92),
    (3, 2.35),
    (4, 2.13),
    (5, 2.02),
    (6, 1.94),
    (8, 1.86),
    (10, 1.81),
    (15, 1.75),
    (20, 1.72),
    (30, 1.70),
    (60, 1.67),
    (120, 1.66),
)
"""One-sided 95% quantiles of Student's t by degrees of freedom; 1.645 beyond. (Any table, e.g. NIST/SEMATECH 1.3.6.7.2.)"""

NORMAL_QUANTILE = 1.645

MOST = 5 / 3
"""The most by which the bound may exceed the error of the samples: two samples say little of their spread, and t much."""

ALONE = 1.5
"""By how much the error of new inputs may exceed that of a single sample, of whose spread nothing is known."""


def upper_bound(squares: Sequence[float]) -> float:
    """The root of a 95% upper confidence bound on the sum of squared errors, from what each sample contributes to it.

    Samples that are all alike bound new inputs closely; where one of them makes most of the error, another such one is
    likely, and the bound is far above the sum. Raises ValueError without samples.
    """
    if not squares:
        raise ValueError("no samples")
    total = math.fsum(squares)
    if not math.isfinite(total):
        return math.inf
    count = len(squares)
    if count == 1:
        return ALONE * math.sqrt(total)
    deviation = float(np.std(np.asarray(squares, np.float64), ddof=1))
    return min(math.sqrt(total + _quantile(count - 1) * deviation * math.sqrt(count)), MOST * math.sqrt(total))


def _quantile(freedom: int) -> float:
    """The quantile for so many degrees of freedom; that of the next smaller row, which is the larger."""
    place = bisect.bisect_right(STUDENT, (freedom, math.inf)) - 1
    return STUDENT[place][1] if freedom <= STUDENT[-1][0] else NORMAL_QUANTILE
