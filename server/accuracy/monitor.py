"""A model's accuracy while it serves: what was seen, what it means, and what follows from it."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from demi.accuracy.budget import Budget
from demi.server.accuracy.guard import Guard, now_ms
from demi.server.accuracy.window import Compared, Verdict, Window
from demi.server.protocol.answer import Answer
from demi.server.scheduling.statistics import Histogram

log = logging.getLogger("demi.server")

OnDrift = Literal["log", "degrade", "fp32"]

RELATIVE = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Upper bounds of the histograms of errors."""

JUDGE_SHARE = 50
"""A window is judged once it holds one in so many new comparisons: judging walks all of it."""

DECIBELS = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 120.0)
"""Upper bounds of the histogram of the signal to quantization noise ratio."""


@dataclass(frozen=True, slots=True)
class Change:
    """A model that was found over its budget, or that came back."""

    when_ms: int
    to: Literal["over", "within"]
    action: OnDrift
    samples: int
    reasons: tuple[str, ...]


class OutputCounts:
    """The errors of one output since the start."""

    def __init__(self) -> None:
        self.relative_l2 = Histogram(RELATIVE)
        self.max_abs = Histogram(RELATIVE)
        self.cosine_distance = Histogram(RELATIVE)
        self.sqnr_db = Histogram(DECIBELS)
        self.top1 = 0
        self.top1_agree = 0.0
        self.non_finite = 0


class Watch:
    """What one model version's accuracy was and is. Belongs to the event loop's thread.

    Once the window is over the budget the model is `over`, until a window that began anew is within it; `on_drift`
    says what that means: a line in the log, a model that is reported degraded, or traffic that moves to FP32.
    """

    def __init__(self, name: str, budget: Budget, ranges: Mapping[str, tuple[float, float]], on_drift: OnDrift) -> None:
        self.window = Window(budget)
        self.changes: deque[Change] = deque(maxlen=20)
        self.counts: dict[str, OutputCounts] = {}
        self.changed = {"over": 0, "within": 0}
        self.ranges = dict(ranges)
        self.outside = dict.fromkeys(self.ranges, 0)
        self.served: dict[str, int] = {}
        self.guard = Guard()
        self.over = False
        self.on_drift: OnDrift = on_drift
        self._name = name
        self._since_judged = 0

    @property
    def state_text(self) -> str:
        """`over` from the moment it was found so until it recovers; else what the window says."""
        return "over" if self.over else self.window.judge().text

    @property
    def degraded(self) -> bool:
        """Whether the model is to be reported degraded."""
        return self.over and self.on_drift != "log"

    @property
    def moves_traffic(self) -> bool:
        """Whether requests that leave the choice to the server are answered in FP32 now."""
        return self.over and self.on_drift == "fp32"

    def note(self, answer: Answer) -> None:
        """Count an answer: its precision, and the inputs beyond what calibration saw."""
        self.served[answer.precision] = self.served.get(answer.precision, 0) + 1
        for name in answer.outside:
            self.outside[name] += 1

    def add(self, compared: Compared) -> None:
        """One more comparison, and what follows from it."""
        self.window.add(compared)
        for diff in compared.outputs:
            counts = self.counts.setdefault(diff.output, OutputCounts())
            counts.non_finite += diff.non_finite
            if diff.top1 is not None:
                counts.top1 += 1
                counts.top1_agree += diff.top1
            _add(counts.relative_l2, diff.relative_l2)
            _add(counts.max_abs, diff.max_abs)
            _add(counts.cosine_distance, 1 - diff.cosine)
            _add(counts.sqnr_db, diff.sqnr_db)
        self._since_judged += 1
        if self._since_judged > len(self.window.compared) // JUDGE_SHARE or not math.isfinite(compared.error):
            self._since_judged = 0
            self._follow(self.window.judge())

    def _follow(self, verdict: Verdict) -> None:
        if not self.over and verdict.state == "over":
            self._change("over", verdict)
            log.error(
                "%s is over its accuracy budget (%s); %s",
                self._name,
                "; ".join(verdict.reasons),
                _ACTIONS[self.on_drift],
            )
        elif self.over and verdict.state == "within":
            self._change("within", verdict)
            log.warning("%s is within its accuracy budget again, after %d samples", self._name, verdict.samples)

    def _change(self, to: Literal["over", "within"], verdict: Verdict) -> None:
        """Begin a new window, so that the way back is judged by what comes from now on."""
        self.over = to == "over"
        self.changed[to] += 1
        self.changes.append(Change(now_ms(), to, self.on_drift, verdict.samples, tuple(verdict.reasons)))
        self.window.clear()


_ACTIONS: dict[OnDrift, str] = {
    "log": "nothing else follows (--on-drift log)",
    "degrade": "the model is reported degraded",
    "fp32": "traffic moves to FP32",
}


def _add(histogram: Histogram, value: float) -> None:
    """One more value; one that is not finite has its own count, and would spoil the histogram's sum."""
    if math.isfinite(value):
        histogram.add(value)
