"""Number of CPU cores that this process may use; a container's share is often smaller than the machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota: Path = _QUOTA) -> int:
    """Return the number of cores: those of its affinity mask, limited by the quota of its control group."""
    return min(_scheduled(), _allowed(quota) or _scheduled())


def is_confined(quota: Path = _QUOTA) -> bool:
    """Return whether this process may use fewer cores than the machine has."""
    return usable_cores(quota) < (os.cpu_count() or 1)


def _scheduled() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _allowed(quota: Path) -> int | None:
    """Return the quota of cgroup v2 (`max 100000` or `150000 100000`) in cores, rounded up; None without one."""
    try:
        limit, period = quota.read_text().split()
        return max(1, math.ceil(int(limit) / int(period))) if limit != "max" else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
