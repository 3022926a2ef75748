"""Time two sessions alternately, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from demi.runtime.base import Session
from demi.tensors import Feeds


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency percentiles in milliseconds and throughput of one model at one batch size."""

    batch: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rows_per_s: float


@dataclass(frozen=True, slots=True)
class SideBySide:
    """FP32 and half at one batch size; `speedup` is the ratio of their median latencies."""

    fp32: Latency
    half: Latency

    @property
    def speedup(self) -> float:
        return self.fp32.p50_ms / self.half.p50_ms


def time_side_by_side(fp32: Session, half: Session, feeds: Feeds, batch: int, seconds: float) -> SideBySide:
    """Time both sessions on the same inputs, alternating, for about `seconds` in total (at least five runs each)."""
    inputs = {id(session): fit(session, feeds) for session in (fp32, half)}
    for session in (fp32, half):
        session.run(inputs[id(session)])
    times: dict[int, list[float]] = {id(fp32): [], id(half): []}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[id(half)]) < 5:
        for session in (fp32, half):
            start = time.perf_counter()
            session.run(inputs[id(session)])
            times[id(session)].append(time.perf_counter() - start)
    return SideBySide(_latency(times[id(fp32)], batch), _latency(times[id(half)], batch))


def fit(session: Session, feeds: Feeds) -> Feeds:
    """Return the feeds of the session's inputs, in their dtypes."""
    return {spec.name: feeds[spec.name].astype(spec.dtype.numpy, copy=False) for spec in session.inputs}


def _latency(seconds: list[float], batch: int) -> Latency:
    p50, p95, p99 = np.percentile(np.array(seconds) * 1e3, [50, 95, 99])
    return Latency(batch, len(seconds), float(p50), float(p95), float(p99), batch * len(seconds) / sum(seconds))
