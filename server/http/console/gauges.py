"""Gauges of live accuracy: how much of each limit of the budget is used."""

from __future__ import annotations

import math
from dataclasses import dataclass

from demi.accuracy.budget import AT_LEAST
from demi.server.accuracy.window import Interval, OutputAccuracy


@dataclass(frozen=True, slots=True)
class Gauge:
    """One metric of one output beside its limit."""

    output: str
    metric: str
    value: float
    low: float | None
    """Confidence interval; None for extremes, which have none."""
    high: float | None
    limit: float
    at_least: bool
    """True if the metric must not fall below the limit, False if it must not exceed it."""
    use: float
    """Share of the allowed error that is used: 1 at the limit, and infinite beyond a limit that allows no error."""
    state: str
    samples: int


def gauges(accuracy: OutputAccuracy) -> list[Gauge]:
    """Return one gauge for each limit of an output that was measured, the most used first."""
    found = [
        _gauge(accuracy, metric, measured, limit)
        for metric, limit in accuracy.limits.items()
        if (measured := _measured(accuracy, metric)) is not None
    ]
    return sorted(found, key=lambda gauge: -gauge.use)


def used(metric: str, value: float, limit: float) -> float:
    """Return the share of the allowed error that a value uses."""
    error, allowed = (1 - value, 1 - limit) if metric in AT_LEAST else (value, limit)
    if allowed <= 0:
        return math.inf if error > 0 else 0.0
    return max(error, 0.0) / allowed


def _gauge(accuracy: OutputAccuracy, metric: str, measured: Interval | float, limit: float) -> Gauge:
    value, low, high = (
        (measured.value, measured.low, measured.high) if isinstance(measured, Interval) else (measured, None, None)
    )
    return Gauge(
        accuracy.output,
        metric,
        value,
        low,
        high,
        limit,
        metric in AT_LEAST,
        used(metric, value, limit),
        accuracy.state,
        accuracy.samples,
    )


def _measured(accuracy: OutputAccuracy, metric: str) -> Interval | float | None:
    """Return a metric of the window; None if the output does not have it."""
    return getattr(accuracy, metric, None)
