"""A verdict on a model's drift that was reached for several servers, and how fast they follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FIRST_SHARE = 0.1
"""Share of the requests that moves to FP32 at once."""

RAMP_S = 300.0
"""Seconds until all requests have moved: FP32 takes more than twice the time, and new replicas need minutes to start."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Decision that a model is over its accuracy budget, or within it again, over the samples of all servers."""

    to: Literal["over", "within"]
    when_ms: int
    """Milliseconds since 1970-01-01 UTC."""
    samples: int
    reasons: tuple[str, ...] = ()


def moved_share(elapsed_s: float) -> float:
    """Return the share of requests that are answered in FP32 so long after the verdict, from `FIRST_SHARE` to 1."""
    return min(FIRST_SHARE + (1 - FIRST_SHARE) * max(elapsed_s, 0.0) / RAMP_S, 1.0)
