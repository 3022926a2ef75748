"""Verification with early rejection: a plan that fails by far on a few samples is not run on all of them."""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet

from demi.accuracy.compare import Comparison
from demi.calibration.emulation.trials import TrialRunner
from demi.exporter.planning.verified_plan import VERIFIED

REJECTION_FACTOR = 1.1
"""Factor over the allowed load from which a plan is rejected early; the ratio of the two loads varies by plan."""


class Screened:
    """Verifier that accepts by a runner on all samples, and may reject by a quick runner on the worst of them.

    Owns the ratio of the two runners' loads for the last plan that both ran. The quick runner alone never accepts.
    """

    def __init__(self, runner: TrialRunner, quick: TrialRunner) -> None:
        self._runner, self._quick = runner, quick
        self._ratio = math.inf if runner is quick else math.nan

    def verify(self, half: AbstractSet[str]) -> tuple[Comparison, float]:
        """Compare the outputs with these nodes in half; also return the share of the budget that new inputs may use."""
        if math.isinf(self._ratio):
            return self._runner.verify(half)
        first = self._quick.compare(half)
        quick_load = self._quick.load(first)
        if quick_load * self._ratio > REJECTION_FACTOR * VERIFIED:
            return first, quick_load * self._ratio
        comparison, load = self._runner.verify(half)
        if 0 < quick_load < math.inf and 0 < load < math.inf:
            self._ratio = load / quick_load
        return comparison, load
