"""The share of the accuracy budget that a comparison uses, by output and metric, as numbers and as a chart."""

from __future__ import annotations

import math

from demi.accuracy.budget import AT_LEAST
from demi.accuracy.compare import Comparison
from demi.calibration.report.charts import bars

MOST_BARS = 16
"""Bars in the chart: the outputs that use most of their budget."""


def budget_use(comparison: Comparison) -> list[tuple[str, float]]:
    """Return the used share of each limit as (`output: metric`, share), the largest first; 1 is all of it.

    For a metric that must be at least its limit, the distances from 1 are compared.
    """
    used = []
    for diff in comparison.outputs:
        for metric, limit in diff.limits.items():
            value = getattr(diff, metric)
            if value is None:
                continue
            error, allowed = (1 - value, 1 - limit) if metric in AT_LEAST else (value, limit)
            share = error / allowed if allowed > 0 else (math.inf if error > 0 else 0.0)
            used.append((f"{diff.output}: {metric}", share))
    return sorted(used, key=lambda item: -item[1])


def budget_chart(comparison: Comparison) -> str:
    """Return the chart of `budget_use` as SVG; empty when no limit was measured. Raises PackageError as `bars` does."""
    used = budget_use(comparison)[:MOST_BARS]
    if not used:
        return ""
    return bars(
        "Share of the budget", [name for name, _ in used], [100 * share for _, share in used], unit="%", limit=100
    )
