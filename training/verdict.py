"""Verdict on a model trained in half beside one trained in FP32: non-inferiority of paired seeds.

Each seed trains twice from the same weights on the same data, so that the difference of a pair is far smaller than the
spread of the seeds. Half is as good where the upper bound of the mean difference, d, stays below a margin:

    mean(d) + t * s_d / sqrt(n) < margin        t: Student's, one-sided 95%, n - 1 degrees of freedom

It is worse where the lower bound lies above the margin; else nothing is shown yet.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from demi.errors import InputError, missing_package

AS_GOOD, WORSE, NOT_SHOWN = "as good", "worse", "not shown"
CONFIDENCE = 0.95
MOST_PAIRS = 10_000
"""More pairs than that nobody trains."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of paired runs."""

    outcome: str
    mean: float
    """Mean of what half loses in a pair, in the metric's unit: positive where half is worse."""
    low: float
    high: float
    """One-sided 95% bounds of the mean."""
    margin: float
    pairs: int
    needed: int | None = None
    """Pairs that would show `as good` if the mean and the spread stayed as they are; None where none would."""
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Return whether half was shown to be as good."""
        return self.outcome == AS_GOOD


def judge(
    fp32: Sequence[float], half: Sequence[float], *, margin: float | None = None, higher_is_better: bool = True
) -> Verdict:
    """Return the verdict on a metric of the same seeds in both precisions.

    `margin` is the loss that does not matter, in the metric's unit; left out, half of the standard deviation of the
    FP32 seeds. A run in half that is not finite makes it worse. Raises InputError for fewer than two pairs, an FP32 run
    that is not finite, and seeds without a spread where no margin is given.
    """
    if len(fp32) != len(half) or len(fp32) < 2:
        raise InputError(
            f"there are {len(fp32)} and {len(half)} runs", where="--compare", hint="compare 2 pairs or more"
        )
    if not all(map(math.isfinite, fp32)):
        raise InputError(
            "a run in FP32 is not finite itself", where="--compare", hint="mend the task or lower the learning rate"
        )
    delta = statistics.stdev(fp32) / 2 if margin is None else margin
    if not delta > 0:
        raise InputError(
            "all FP32 runs have the same metric, so that their spread gives no margin",
            where="--margin",
            hint="give the loss that does not matter, such as --margin 0.01",
        )
    bad = sum(not math.isfinite(value) for value in half)
    if bad:
        reason = f"{bad} of {len(half)} runs in half are not finite"
        return Verdict(WORSE, math.nan, math.nan, math.nan, delta, len(half), reason=reason)
    lost = [(a - b) if higher_is_better else (b - a) for a, b in zip(fp32, half, strict=True)]
    return _verdict(statistics.fmean(lost), statistics.stdev(lost), delta, len(lost))


def _verdict(mean: float, spread: float, delta: float, pairs: int) -> Verdict:
    reach = _reach(spread, pairs)
    low, high = mean - reach, mean + reach
    if high < delta:
        return Verdict(AS_GOOD, mean, low, high, delta, pairs, pairs, "the mean loss is below the margin")
    if low > delta:
        return Verdict(WORSE, mean, low, high, delta, pairs, None, "the mean loss is beyond the margin")
    needed = _needed(mean, spread, delta, pairs)
    more = f"about {needed} pairs would show it" if needed else "the mean itself is too close to the margin"
    return Verdict(NOT_SHOWN, mean, low, high, delta, pairs, needed, more)


def _reach(spread: float, pairs: int) -> float:
    """Return the half-width of the interval: t s / sqrt(n)."""
    try:
        from scipy.stats import t
    except ModuleNotFoundError as error:
        raise missing_package("scipy", "export") from error
    return float(t.ppf(CONFIDENCE, pairs - 1)) * spread / math.sqrt(pairs)


def _needed(mean: float, spread: float, delta: float, pairs: int) -> int | None:
    """Return the smallest number of pairs whose upper bound is below the margin; it falls with each pair more."""
    low, high = pairs, MOST_PAIRS
    if mean + _reach(spread, high) >= delta:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mean + _reach(spread, middle) < delta else (middle, high)
    return high
