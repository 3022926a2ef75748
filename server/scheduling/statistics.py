"""Statistics of one model version: the counts and times that load generators and monitoring read."""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from demi.server.clock import now_ms
from demi.server.scheduling.batch import BatchRun
from demi.tensors import Feeds

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the time histograms' buckets, in seconds."""

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds of the buckets of the histogram of rows per run."""


FINE = 6
"""Buckets of the times of requests for each of `SECONDS`."""

LATENCIES = tuple(
    high if step == FINE else low * (high / low) ** (step / FINE)
    for low, high in pairwise((4e-5, *SECONDS))
    for step in range(1, FINE + 1)
)
"""Upper bounds of the buckets for percentiles, in seconds: those of `SECONDS`, and five between any two, so that a bucket is
at most 17% wide."""


@dataclass(slots=True)
class Duration:
    """Count of events and their total duration in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, times: int = 1) -> None:
        """Add an event of that duration, or several of the same duration."""
        self.count += times
        self.ns += ns * times


class Histogram:
    """Histogram: one count per upper bound, and a last one for values beyond all bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Add a value, or several equal ones."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Return upper bound and cumulative count of every bucket, in Prometheus's format."""
        bounds = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))

    def quantile(self, share: float, before: Sequence[int] = ()) -> float | None:
        """Estimate the value below which `share` of the values lie, evenly spread within a bucket; None without values.

        `before` are earlier counts, which are left out. Values beyond all bounds count as the last bound.
        """
        counts = [now - then for now, then in zip(self.counts, before or [0] * len(self.counts), strict=True)]
        return quantile(counts, self.bounds, share)

    def coarse(self, bounds: Sequence[float]) -> Histogram:
        """Return the same histogram with some of its bounds only."""
        merged = Histogram(bounds)
        merged.total = self.total
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            merged.counts[bisect_left(bounds, bound)] += count
        return merged


def quantile(counts: Sequence[int], bounds: Sequence[float], share: float) -> float | None:
    """Return the value below which `share` of a histogram's values lie, as `Histogram.quantile` estimates it."""
    total = sum(counts)
    if not total:
        return None
    wanted = share * total
    below, low = 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= wanted:
            return low + (bound - low) * (wanted - below) / count
        below, low = below + count, bound
    return low


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of a version's requests at one moment, to tell later ones from earlier ones."""

    success: int = 0
    success_ns: int = 0
    fail: int = 0
    seconds: tuple[int, ...] = ()
    """Counts of the histogram of request times."""


@dataclass(slots=True)
class BatchTimes:
    """Durations of the runs with the same number of rows."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add(self, run: BatchRun, requests: int) -> None:
        """Add a run's times, once for each of so many requests."""
        for duration, ns in (
            (self.compute_input, run.stacked_ns - run.taken_ns),
            (self.compute_infer, run.ended_ns - run.started_ns),
            (self.compute_output, run.answered_ns - run.ended_ns),
        ):
            duration.count += requests
            duration.ns += ns * requests


class Statistics:
    """Counts and times of one model version. Used on the event loop's thread only.

    A request's compute times are those of its run, shared or not, as the protocol's statistics extension defines them.
    """

    def __init__(self) -> None:
        self.inference_count = 0
        self.execution_count = 0
        self.last_inference_ms = 0
        self.device_busy_ns: dict[str, int] = {}
        """Time of all runs by device, each counted once however many requests shared it, second runs included."""
        self.success = Duration()
        self.fail = Duration()
        self.queue = Duration()
        self.compute = BatchTimes()
        self.batches: dict[int, BatchTimes] = {}
        self.batch_rows = Histogram(ROWS)
        self.queue_seconds = Histogram(SECONDS)
        self.compute_seconds = Histogram(SECONDS)
        self.request_seconds = Histogram(LATENCIES)

    def totals(self) -> Totals:
        """Return the current counts of requests."""
        return Totals(self.success.count, self.success.ns, self.fail.count, tuple(self.request_seconds.counts))

    def observe(self, run: BatchRun) -> None:
        """Count one batch whose jobs have just been resolved, unless all of them are second runs of counted requests."""
        self.device_busy_ns[run.device] = self.device_busy_ns.get(run.device, 0) + run.infer_ns
        counted = [part for part in run.parts if part.job.counted]
        if not counted:
            return
        now_ns = time.perf_counter_ns()
        rows = run.rows
        self.execution_count += run.runs
        self.last_inference_ms = now_ms()
        self.batch_rows.add(rows)
        times = self.batches.get(rows)
        if times is None:
            times = self.batches[rows] = BatchTimes()
        times.add(run, 1)
        answered = 0
        for part in counted:
            job = part.job
            if job.failed:
                continue
            self.inference_count += part.stop - part.start
            if part.stop == job.rows and _succeeded(job.future):
                answered += 1
                self.success.add(now_ns - job.arrived_ns)
                self.queue.add(job.queue_ns)
                self.queue_seconds.add(job.queue_ns / 1e9)
                self.request_seconds.add((now_ns - job.arrived_ns) / 1e9)
        if answered:
            self.compute_seconds.add(run.compute_ns / 1e9, answered)
            self.compute.add(run, answered)

    def refuse(self, since_ns: int) -> None:
        """Count a request that arrived at `since_ns` and got no answer: it failed, timed out, or its client left."""
        self.fail.add(time.perf_counter_ns() - since_ns)


def _succeeded(future: asyncio.Future[Feeds]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
