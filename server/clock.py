"""Wall-clock time, as statistics and records of requests carry it."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Return the wall-clock time in milliseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000_000
