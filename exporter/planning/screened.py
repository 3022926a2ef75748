"""Verifier with a first look: a plan that fails on a small sample by far is not run on all of them."""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet

from demi.accuracy.compare import Comparison
from demi.calibration.emulation.trials import TrialRunner
from demi.exporter.planning.planner import VERIFIED

CLEARLY = 1.1
"""Factor over the share that a plan may use, from which the first look rejects: the two runners' ratio varies by plan."""


class Screened:
    """Verifies by a runner on all samples, and rejects by a quick one on the worst of them.

    Owns the ratio of what both saw of the last plan that both looked at. Nothing is accepted at a first look.
    """

    def __init__(self, runner: TrialRunner, quick: TrialRunner) -> None:
        self._runner, self._quick = runner, quick
        self._ratio = math.inf if runner is quick else math.nan

    def verify(self, half: AbstractSet[str]) -> tuple[Comparison, float]:
        """The outputs with these nodes in half, and the share of the budget that new inputs may use."""
        if math.isinf(self._ratio):
            return self._runner.verify(half)
        first = self._quick.compare(half)
        glimpse = self._quick.load(first)
        if glimpse * self._ratio > CLEARLY * VERIFIED:
            return first, glimpse * self._ratio
        comparison, load = self._runner.verify(half)
        if 0 < glimpse < math.inf and 0 < load < math.inf:
            self._ratio = load / glimpse
        return comparison, load
