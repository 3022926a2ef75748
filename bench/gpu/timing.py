"""Timing one call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.gpu.setup import Row

WARM_UPS = 2
FEWEST = 3


@dataclass(frozen=True, slots=True)
class Times:
    """Percentiles of one call in milliseconds."""

    p50_ms: float
    p95_ms: float
    runs: int

    def row(self, batch: int) -> Row:
        """Return latency and rows per second."""
        return {"p50 ms": self.p50_ms, "p95 ms": self.p95_ms, "rows/s": 1000 * batch / self.p50_ms}


def measure(call: Callable[[], object], seconds: float) -> Times:
    """Time a call that returns when its work is done, repeatedly for about `seconds` (at least three times)."""
    for _ in range(WARM_UPS):
        call()
    taken: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(taken) < FEWEST:
        start = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - start))
    p50, p95 = np.percentile(taken, [50, 95])
    return Times(float(p50), float(p95), len(taken))
