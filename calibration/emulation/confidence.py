"""Errors that new inputs may have, from those of the samples: an upper confidence bound, and the hardest sample's."""

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
"""Maximum ratio of the bound to the error of the samples: the spread of two samples is uncertain, and t is large."""

ALONE = 1.5
"""Ratio of the bound to the error of a single sample, whose spread is unknown."""


def upper_bound(squares: Sequence[float]) -> float:
    """Return the root of a 95% upper confidence bound on the sum of squared errors, from each sample's contribution.

    With equal contributions the bound is tight. If one sample causes most of the error, another such sample is likely,
    and the bound is far above the sum. Raises ValueError without samples.
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


def hardest_alone(squares: Sequence[float]) -> float:
    """Return the root of the sum of squared errors if every sample contributed as much as the hardest one.

    A request may be a sample of its own, and this is its error, weighed by the mean norm of all outputs.
    """
    return math.sqrt(len(squares) * max(squares))


def _quantile(freedom: int) -> float:
    """Return the quantile for `freedom` degrees of freedom, from the next smaller row, whose quantile is larger."""
    place = bisect.bisect_right(STUDENT, (freedom, math.inf)) - 1
    return STUDENT[place][1] if freedom <= STUDENT[-1][0] else NORMAL_QUANTILE
