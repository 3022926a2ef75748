"""Bounded history of one model version: rates, percentiles and errors over the last minutes and hours.

A point is the difference of two readings of the model's counters, so that requests pay for nothing but the counters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from demi.server.models.model import Model, State
from demi.server.scheduling.statistics import quantile
from demi.tensors import Array

MAX_OUTPUTS = 8
"""Outputs whose error is kept; models with more are rare, and charts of them unreadable."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of one model version at one moment."""

    seconds: float
    """Of the monotonic clock."""
    answered: int
    failed: int
    rows: int
    runs: int
    guarded: int
    """Answers that half precision made NaN or infinite, repaired by FP32 or not."""
    outside: int
    """Inputs outside their calibrated range."""
    samples: int
    """Requests compared with the other precision."""
    queue: int
    """Requests waiting at this moment."""
    latencies: tuple[int, ...]
    """Answered requests by latency: one count for each bucket of `bounds`."""
    bounds: Sequence[float]
    """Upper bounds of the buckets, in seconds."""
    errors: tuple[tuple[int, float], ...]
    """Samples and the sum of their relative L2, for each output."""

    def before_any(self, seconds: float) -> Reading:
        """Return the reading at that earlier time, before the model's first request."""
        return replace(
            self,
            seconds=seconds,
            answered=0,
            failed=0,
            rows=0,
            runs=0,
            guarded=0,
            outside=0,
            samples=0,
            queue=0,
            latencies=(0,) * len(self.latencies),
            errors=((0, 0.0),) * len(self.errors),
        )


@dataclass(frozen=True, slots=True)
class Activity:
    """Activity of a model version between two readings. NaN stands for an average of nothing."""

    rate: float
    """Answered requests per second."""
    p50_ms: float
    p99_ms: float
    queue: float
    batch: float
    """Rows per run."""
    failures: float
    """Share of requests that failed."""
    guarded: float
    """Guarded requests per minute."""
    outside: float
    """Inputs outside their calibrated range, per minute."""
    samples: float
    """Shadow samples per minute."""
    errors: tuple[float, ...]
    """Mean relative L2 of the shadow samples, for each output."""


COLUMNS = ("rate", "p50_ms", "p99_ms", "queue", "batch", "failures", "guarded", "outside", "samples")
"""Names of the numbers of an `Activity` before its errors."""


def read_model(model: Model, seconds: float) -> Reading:
    """Return the counters of a model now; `seconds` is the monotonic time."""
    statistics = model.statistics
    guarded = outside = samples = 0
    errors: tuple[tuple[int, float], ...] = ()
    if model.state is State.READY:
        monitor, shadow = model.monitor, model.shadow
        guarded = monitor.guard.reruns + monitor.guard.unrepaired
        outside = sum(monitor.outside.values())
        samples = shadow.samples if shadow else 0
        counts = [monitor.counts.get(spec.name) for spec in model.signature.outputs[:MAX_OUTPUTS]]
        errors = tuple(
            (sum(each.relative_l2.counts), each.relative_l2.total) if each is not None else (0, 0.0) for each in counts
        )
    return Reading(
        seconds,
        statistics.success.count,
        statistics.fail.count,
        statistics.inference_count,
        statistics.execution_count,
        guarded,
        outside,
        samples,
        model.queue_length,
        tuple(statistics.request_seconds.counts),
        statistics.request_seconds.bounds,
        errors,
    )


def between(before: Reading, now: Reading) -> Activity:
    """Return what happened between two readings of the same model."""
    elapsed_s = max(now.seconds - before.seconds, 1e-9)
    answered, failed = now.answered - before.answered, now.failed - before.failed
    rows, runs = now.rows - before.rows, now.runs - before.runs
    latencies = (
        [after - earlier for earlier, after in zip(before.latencies, now.latencies, strict=True)] if answered else []
    )
    was = before.errors or ((0, 0.0),) * len(now.errors)  # empty before the model was ready
    return Activity(
        rate=answered / elapsed_s,
        p50_ms=_percentile_ms(latencies, now.bounds, 0.50),
        p99_ms=_percentile_ms(latencies, now.bounds, 0.99),
        queue=now.queue,
        batch=_ratio(rows, runs) if rows else math.nan,
        failures=_ratio(failed, answered + failed),
        guarded=60 * (now.guarded - before.guarded) / elapsed_s,
        outside=60 * (now.outside - before.outside) / elapsed_s,
        samples=60 * (now.samples - before.samples) / elapsed_s,
        errors=tuple(
            _ratio(total - sum_before, count - count_before)
            for (count_before, sum_before), (count, total) in zip(was, now.errors, strict=True)
        ),
    )


def _percentile_ms(counts: Sequence[int], bounds: Sequence[float], share: float) -> float:
    """Return a percentile of a histogram of seconds, in milliseconds; NaN if it is empty."""
    seconds = quantile(counts, bounds, share)
    return math.nan if seconds is None else 1000 * seconds


class Track:
    """The last points of one model version at one interval: a ring of at most `size` rows in float32.

    Grows with the points that it holds, so that a model without traffic takes no memory.
    """

    def __init__(self, interval_s: float, size: int, outputs: int) -> None:
        self.interval_s = interval_s
        self._size = size
        self._times = np.empty(0)
        self._rows = np.empty((0, len(COLUMNS) + outputs), np.float32)
        self._next = 0
        self._last: Reading | None = None

    @property
    def has_begun(self) -> bool:
        """Return whether a reading was added."""
        return self._last is not None

    def add(self, reading: Reading, when_ms: float, turns: int = 1) -> None:
        """Add the point between the last reading and this one; none after a pause of several intervals.

        `turns` is the number of intervals from one reading to the next.
        """
        last, self._last = self._last, reading
        if last is None or self.is_pause(last, reading, turns):
            return
        found = between(last, reading)
        row = [*(getattr(found, name) for name in COLUMNS), *found.errors]
        row += [math.nan] * (self._rows.shape[1] - len(row))
        if self._next == len(self._times) < self._size:
            self._grow()
        at = self._next % self._size
        self._times[at], self._rows[at] = when_ms, row
        self._next += 1

    def is_pause(self, before: Reading, now: Reading, turns: int = 1) -> bool:
        """Return whether so much time is between two readings that their difference would not be one point."""
        return now.seconds - before.seconds > 4 * turns * self.interval_s

    def since(self, when_ms: float) -> tuple[list[float], list[list[float]]]:
        """Return the times of the points after `when_ms`, and one list for each column, oldest point first."""
        order = self._order()
        times = self._times[order]
        order = order[times > when_ms]
        return self._times[order].tolist(), self._rows[order].T.tolist()

    def _order(self) -> Array:
        count = min(self._next, self._size)
        return (np.arange(count) + max(self._next - self._size, 0)) % self._size

    def _grow(self) -> None:
        more = min(max(2 * len(self._times), 16), self._size)
        times, rows = np.zeros(more), np.zeros((more, self._rows.shape[1]), np.float32)
        times[: self._next], rows[: self._next] = self._times, self._rows
        self._times, self._rows = times, rows


def _ratio(total: float, count: int) -> float:
    return total / count if count > 0 else math.nan
