"""Sliding window of shadow samples, assessed against the bundle's accuracy budget.

A sample compares one live request in half precision with the same request in FP32 (`demi.accuracy.compare`). The window
holds the last `WINDOW` samples. Metrics that are averages come with a confidence interval at `CONFIDENCE`:

- relative L2: root mean square over the samples, with the normal interval of the mean of squares
- top-1: share of agreeing requests, all weighted alike, with Wilson's score interval (1927), which stays within [0, 1]
- integer elements that agree, with Wilson's interval
- changed boxes as a share of all boxes in the window, with Wilson's interval

The largest absolute error, the smallest cosine and non-finite values are extremes and counts without an interval.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

from demi.accuracy.budget import Budget, Limits
from demi.accuracy.compare import TensorDiff
from demi.server.accuracy.summary import Share, Summary, summarize

State = Literal["within", "over", "unknown"]

WINDOW = 1000
"""Samples in the window; older ones are dropped."""

MIN_SAMPLES = 20
"""Fewer samples than this leave the state of every average unknown."""

CONFIDENCE = 0.95
"""Confidence level of all intervals."""

WORST = 10
"""Number of requests with the largest errors that are reported."""

_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval at `CONFIDENCE`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class OutputAccuracy:
    """Accuracy of one output over the window, against its limits."""

    output: str
    state: State
    samples: int
    relative_l2: Interval
    max_abs: float
    cosine: float
    sqnr_db: float
    top1: Interval | None
    """Share of requests with the same largest score; None for an output that is not a table of scores."""
    non_finite: int
    """Elements that were NaN or infinite in half precision only."""
    limits: Limits
    reasons: tuple[str, ...] = ()
    """One sentence for each metric over its limit."""
    agree: Interval | None = None
    """Share of an integer output's elements that agree; None for floats."""
    boxes: Interval | None = None
    """Share of boxes that changed; None for outputs that are not boxes."""


@dataclass(frozen=True, slots=True)
class WindowAccuracy:
    """Accuracy of all outputs over the window: `over` if one output is, `within` if all are, else `unknown`."""

    state: State
    samples: int
    outputs: tuple[OutputAccuracy, ...]

    @property
    def reasons(self) -> list[str]:
        """One sentence for each metric over its limit, with the output's name."""
        return [f"`{each.output}`: {reason}" for each in self.outputs for reason in each.reasons]

    @property
    def text(self) -> str:
        """State as text: `within`, `over`, or `unknown (7 samples)`."""
        return f"unknown ({self.samples} samples)" if self.state == "unknown" else self.state


@dataclass(frozen=True, slots=True)
class ShadowSample:
    """Error of one live request in half precision against FP32. `fingerprint` identifies the inputs (not stored)."""

    request_id: str
    fingerprint: str
    when_ms: int
    outputs: tuple[TensorDiff, ...]

    @property
    def error(self) -> float:
        """Largest relative L2 error of any output."""
        return max((diff.relative_l2 for diff in self.outputs), default=0.0)


@dataclass(slots=True)
class Window:
    """The last `WINDOW` shadow samples of a model."""

    budget: Budget
    samples: deque[ShadowSample] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def add(self, sample: ShadowSample) -> None:
        """Add a sample; the oldest is dropped if the window is full."""
        self.samples.append(sample)

    def clear(self) -> None:
        """Drop all samples."""
        self.samples.clear()

    def worst(self) -> list[ShadowSample]:
        """Return the samples with the largest errors, largest first."""
        return sorted(self.samples, key=lambda each: -each.error)[:WORST]

    def assess(self) -> WindowAccuracy:
        """Return the accuracy of every output in the current window, against its limits."""
        return assess_summaries(self.summarize(), len(self.samples), self.budget)

    def summarize(self) -> dict[str, Summary]:
        """Return the summary of every output in the current window. Summaries of several servers add up."""
        by_output: dict[str, list[TensorDiff]] = {}
        for sample in self.samples:
            for diff in sample.outputs:
                by_output.setdefault(diff.output, []).append(diff)
        return {name: summarize(diffs) for name, diffs in by_output.items()}


def assess_summaries(summaries: Mapping[str, Summary], samples: int, budget: Budget) -> WindowAccuracy:
    """Return the accuracy of every output from its summary, against its limits; `samples` were compared in all."""
    outputs = tuple(assess_summary(name, each, budget.limits(name)) for name, each in summaries.items())
    return WindowAccuracy(_worst_state([each.state for each in outputs]), samples, outputs)


def assess_output(output: str, diffs: Sequence[TensorDiff], limits: Limits) -> OutputAccuracy:
    """Return the accuracy of one output from its diffs, against its limits. `diffs` must not be empty."""
    return assess_summary(output, summarize(diffs), limits)


def assess_summary(output: str, summary: Summary, limits: Limits) -> OutputAccuracy:
    """Return the accuracy of one output from the summary of its diffs, against its limits. It must not be empty."""
    relative_l2 = root_mean_square(summary)
    top1 = _wilson_of(summary.top1)
    agree = _wilson_of(summary.agree)
    boxes = wilson(summary.changed, summary.found) if summary.found else None
    reasons = [f"{summary.wrong:,} elements are not finite or differ"] if summary.wrong else []
    enough = summary.count >= MIN_SAMPLES
    if enough and limits.relative_l2 is not None and relative_l2.low > limits.relative_l2:
        reasons.append(_beyond("relative_l2", relative_l2, f"at most {limits.relative_l2:g}"))
    if enough and limits.top1 is not None and top1 is not None and top1.high < limits.top1:
        reasons.append(_beyond("top1", top1, f"at least {limits.top1:g}"))
    if enough and limits.agree is not None and agree is not None and agree.high < limits.agree:
        reasons.append(_beyond("agree", agree, f"at least {limits.agree:g}"))
    if enough and limits.boxes is not None and boxes is not None and boxes.low > limits.boxes:
        reasons.append(_beyond("boxes", boxes, f"at most {limits.boxes:g}"))
    if limits.steps is not None and summary.steps > limits.steps:
        reasons.append(f"steps reached {summary.steps:.3g}, the budget is at most {limits.steps:g}")
    if limits.max_abs is not None and summary.max_abs > limits.max_abs:
        reasons.append(f"max_abs reached {summary.max_abs:.3g}, the budget is at most {limits.max_abs:g}")
    if limits.cosine is not None and summary.cosine < limits.cosine:
        reasons.append(f"cosine fell to {summary.cosine:.6g}, the budget is at least {limits.cosine:g}")
    changes = boxes is not None and limits.boxes is not None and boxes.value > limits.boxes
    differs = agree is not None and limits.agree is not None and agree.value < limits.agree
    sure = enough and not changes and not differs and _surely_within(relative_l2, top1, limits)
    return OutputAccuracy(
        output=output,
        state="over" if reasons else "within" if sure else "unknown",
        samples=summary.count,
        relative_l2=relative_l2,
        max_abs=summary.max_abs,
        cosine=summary.cosine,
        sqnr_db=_decibels(relative_l2.value),
        top1=top1,
        non_finite=summary.non_finite,
        limits=limits,
        reasons=tuple(reasons),
        agree=agree,
        boxes=boxes,
    )


def root_mean_square(summary: Summary) -> Interval:
    """Return the root mean square of the relative L2 errors, with the normal interval of the mean of squares.

    Infinite if an error is.
    """
    mean = summary.mean_square
    if not math.isfinite(mean):
        return Interval(math.inf, math.inf, math.inf)
    half = _Z * math.sqrt(summary.variance / summary.count)
    return Interval(math.sqrt(mean), math.sqrt(max(mean - half, 0.0)), math.sqrt(mean + half))


def _wilson_of(share: Share) -> Interval | None:
    return wilson(share.value, share.count) if share.count else None


def wilson(successes: float, count: int) -> Interval:
    """Return the share `successes / count`, with Wilson's score interval (1927)."""
    share = successes / count
    scale = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return Interval(share, max(middle - half, 0.0), min(middle + half, 1.0))


def _surely_within(relative_l2: Interval, top1: Interval | None, limits: Limits) -> bool:
    if limits.relative_l2 is not None and relative_l2.high > limits.relative_l2:
        return False
    # Wilson's lower bound reaches a limit of 0.99 only after 381 agreements in a row, so the share itself is compared.
    return limits.top1 is None or top1 is None or top1.value >= limits.top1


def _worst_state(states: Sequence[State]) -> State:
    if "over" in states:
        return "over"
    return "within" if states and all(state == "within" for state in states) else "unknown"


def _beyond(metric: str, found: Interval, budget: str) -> str:
    return f"{metric} is {found.value:.3g} ({found.low:.3g} to {found.high:.3g}), the budget is {budget}"


def _decibels(relative: float) -> float:
    """Return a relative L2 error as a signal-to-quantization-noise ratio in dB: -20 log10 of it."""
    return -20 * math.log10(relative) if relative > 0 else math.inf
