"""Accuracy monitor of one model: counts errors, compares the window with the budget, and acts on drift."""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from demi.accuracy.budget import Budget
from demi.printable import printable
from demi.server.accuracy.guard import Guard
from demi.server.accuracy.verdict import Verdict, moved_share
from demi.server.accuracy.window import ShadowSample, Window, WindowAccuracy
from demi.server.clock import now_ms
from demi.server.protocol.answer import Answer
from demi.server.scheduling.statistics import Histogram

log = logging.getLogger("demi.server")

OnDrift = Literal["log", "degrade", "fp32"]

RELATIVE = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Upper bounds of the error histograms' buckets."""

DECIBELS = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 120.0)
"""Upper bounds of the buckets of the signal-to-quantization-noise histogram, in dB."""

ASSESS_SHARE = 50
"""The window is assessed again after new samples worth 1/50 of it: each assessment walks the whole window."""

MAX_CHANGES = 20
"""State changes kept in memory; the oldest is dropped first."""


@dataclass(frozen=True, slots=True)
class Change:
    """Change of a model's state: it went over its accuracy budget, or came back within it."""

    when_ms: int
    to: Literal["over", "within"]
    action: OnDrift
    samples: int
    reasons: tuple[str, ...]


class OutputCounts:
    """Error statistics of one output since the model was loaded."""

    def __init__(self) -> None:
        self.relative_l2 = Histogram(RELATIVE)
        self.max_abs = Histogram(RELATIVE)
        self.cosine_distance = Histogram(RELATIVE)
        self.sqnr_db = Histogram(DECIBELS)
        self.top1 = 0
        self.top1_agree = 0.0
        self.non_finite = 0


class AccuracyMonitor:
    """Current and past accuracy of one model version. Used on the event loop's thread only.

    The model becomes `over` once its window exceeds the budget, and stays so until a new window is within it.
    `on_drift` selects the consequence: a log line, a model reported as degraded, or traffic moved to FP32.

    A server that is not `alone` leaves the decision to a verdict on the samples of all (`follow`); its traffic then moves
    little by little.
    """

    def __init__(
        self,
        name: str,
        budget: Budget,
        ranges: Mapping[str, tuple[float, float]],
        on_drift: OnDrift,
        guard: Guard,
        *,
        alone: bool = True,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.window = Window(budget)
        self.changes: deque[Change] = deque(maxlen=MAX_CHANGES)
        self.counts: dict[str, OutputCounts] = {}
        self.changed = {"over": 0, "within": 0}
        self.ranges = dict(ranges)
        self.outside = dict.fromkeys(self.ranges, 0)
        self.served: dict[str, int] = {}
        self.guard = guard
        self.over = False
        self.on_drift: OnDrift = on_drift
        self._name = name
        self._alone = alone
        self._draw = draw
        self._since_assessed = 0

    @property
    def state_text(self) -> str:
        """`over` from its detection until recovery; otherwise the state of the current window."""
        return "over" if self.over else self.window.assess().text

    @property
    def degraded(self) -> bool:
        """Return whether the model is reported as degraded."""
        return self.over and self.on_drift != "log"

    @property
    def moves_traffic(self) -> bool:
        """Return whether requests with precision `auto` are currently answered in FP32, all or a share of them."""
        return self.over and self.on_drift == "fp32"

    def moves_request(self) -> bool:
        """Return whether one request with precision `auto` is answered in FP32."""
        if not self.moves_traffic:
            return False
        return self._alone or self._draw() < moved_share((now_ms() - self.changes[-1].when_ms) / 1000)

    def follow(self, verdict: Verdict) -> None:
        """Act on a verdict that was reached for all servers; one that is followed already changes nothing."""
        if self.over != (verdict.to == "over"):
            self._change(verdict)

    def count_answer(self, answer: Answer) -> None:
        """Count an answer by its precision, and its inputs outside the calibrated ranges."""
        self.served[answer.precision] = self.served.get(answer.precision, 0) + 1
        for name in answer.outside:
            self.outside[name] += 1
            if is_power_of_ten(self.outside[name]):
                self._log_outside(name)

    def _log_outside(self, name: str) -> None:
        low, high = self.ranges[name]
        log.warning(
            "%s: input %s was outside its calibrated range, %g to %g, in %d of %d requests: "
            "the accuracy of half is not proved there, and values may overflow",
            self._name,
            printable(name),
            low,
            high,
            self.outside[name],
            sum(self.served.values()),
        )

    def add_sample(self, sample: ShadowSample) -> None:
        """Add one shadow sample, and act if the window's state has changed."""
        self.window.add(sample)
        for diff in sample.outputs:
            counts = self.counts.setdefault(diff.output, OutputCounts())
            counts.non_finite += diff.non_finite
            if diff.top1 is not None:
                counts.top1 += 1
                counts.top1_agree += diff.top1
            _add(counts.relative_l2, diff.relative_l2)
            _add(counts.max_abs, diff.max_abs)
            _add(counts.cosine_distance, 1 - diff.cosine)
            _add(counts.sqnr_db, diff.sqnr_db)
        self._since_assessed += 1
        if self._since_assessed > len(self.window.samples) // ASSESS_SHARE or not math.isfinite(sample.error):
            self._since_assessed = 0
            self._act_on(self.window.assess())

    def _act_on(self, found: WindowAccuracy) -> None:
        if self._alone and (verdict := verdict_on(found, is_over=self.over)):
            self._change(verdict)

    def _change(self, verdict: Verdict) -> None:
        """Record the change and clear the window, so that recovery is assessed on new samples only."""
        self.over = verdict.to == "over"
        self.changed[verdict.to] += 1
        self.changes.append(
            Change(verdict.when_ms, verdict.to, self.on_drift, verdict.samples, verdict.reasons),
        )
        self.window.clear()
        if self.over:
            action = _ACTIONS[self.on_drift]
            log.error("%s is over its accuracy budget (%s); %s", self._name, "; ".join(verdict.reasons), action)
        else:
            log.warning("%s is within its accuracy budget again, after %d samples", self._name, verdict.samples)


def verdict_on(found: WindowAccuracy, *, is_over: bool) -> Verdict | None:
    """Return the verdict that changes the state of a model whose window is assessed so; None if it stays as it is."""
    if found.state == "unknown" or (found.state == "over") == is_over:
        return None
    return Verdict(found.state, now_ms(), found.samples, tuple(found.reasons))


_ACTIONS: dict[OnDrift, str] = {
    "log": "nothing else follows (--on-drift log)",
    "degrade": "the model is reported as degraded",
    "fp32": "traffic moves to FP32",
}


def is_power_of_ten(count: int) -> bool:
    """Return whether a count is 1, 10, 100 and so on: when a repeated event is logged again."""
    return str(count).strip("0") == "1"


def _add(histogram: Histogram, value: float) -> None:
    """Add a finite value. Non-finite ones are counted separately and would corrupt the histogram's sum."""
    if math.isfinite(value):
        histogram.add(value)
