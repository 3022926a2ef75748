"""Paired bootstrap: a confidence interval for the difference of two runs on the same samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demi.calibration.gate.measure import FORMULAS
from demi.tensors import Array

SEED = 2026
RESAMPLES = 2000
CONFIDENCE = 0.95

_PIECE = 4_000_000
"""Most sample indices in memory at a time."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval of a difference, and how it was computed."""

    low: float
    high: float
    samples: int
    seed: int
    resamples: int = RESAMPLES
    confidence: float = CONFIDENCE

    def __str__(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g}"

    @property
    def method(self) -> str:
        """Return how it was computed, in words."""
        return f"{self.confidence:.0%} interval, paired bootstrap: {self.resamples:,} resamples of {self.samples:,} samples, seed {self.seed}"


def paired_interval(now: Array, was: Array, formula: str, seed: int = SEED) -> Interval | None:
    """Return the confidence interval of `formula(now) - formula(was)`, where row i of both is the same sample.

    Both are `[samples, numbers]`, and each resample takes the same samples from both. Returns None for fewer than two
    samples and for numbers that are not finite.
    """
    from scipy.stats import bootstrap  # takes a second to import

    if len(now) < 2 or not (np.isfinite(now).all() and np.isfinite(was).all()):
        return None
    score, both = FORMULAS[formula], np.concatenate([now, was], axis=1)

    def difference(picked: Array, axis: int = -1) -> Array:
        times = np.apply_along_axis(np.bincount, axis, picked, minlength=len(now))
        sums_now, sums_was = np.split(times @ both, 2, axis=-1)
        gap = score(sums_now) - score(sums_was)
        finite: Array = np.nan_to_num(gap, nan=0.0)  # a resample without a score (of one class, say) favours neither
        return finite

    found = bootstrap(
        (np.arange(len(now)),),
        difference,
        n_resamples=RESAMPLES,
        batch=max(1, _PIECE // len(now)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",  # BCa is undefined where no sample differs, which is the best case
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high), len(now), seed)
