"""Reports for people: what an export found, and what a benchmark measured, each a page that needs nothing but itself."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass

from demi.accuracy.budget import AT_LEAST
from demi.accuracy.compare import Comparison
from demi.bundles.manifest import Manifest
from demi.calibration.benchmark.bench import Benchmark
from demi.calibration.report.charts import bars, grouped
from demi.calibration.report.page import render
from demi.calibration.samples import Samples
from demi.errors import missing_package
from demi.float16 import HalfLoss
from demi.plan import Decision, PrecisionPlan

HEAVIEST = 15
"""Nodes in the chart of the error."""
MOST_ROWS = 200
"""Rows of a table; the JSON files beside the report have all."""
MOST_BARS = 16
"""Outputs in the chart of the budget: those that use most of it."""


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """What the report of an export tells."""

    manifest: Manifest
    plan: PrecisionPlan
    comparison: Comparison
    samples: Samples
    predicted: Mapping[str, float]
    single_flops: float | None
    """Share of the FLOPs that stays in FP32, and of the tensor bytes; None where no sizes were observed."""
    single_bytes: float | None
    first_divergence: str | None
    casts: int
    losses: Mapping[str, HalfLoss]
    fp32_bytes: int
    half_bytes: int
    export_error: float | None


def export_report(facts: ExportFacts) -> str:
    """The page about an export; nothing in it depends on when it was made.

    Raises PackageError when the packages that draw it are missing.
    """
    heaviest = _heaviest(facts.plan)
    charts = {"budget": _budget_chart(facts.comparison)}
    if heaviest:
        charts["nodes"] = bars(
            "Share of the predicted squared error by node",
            [decision.node for decision in heaviest],
            [100 * (decision.share or 0.0) for decision in heaviest],
            unit="%",
        )
    losses = sorted(facts.losses.items(), key=lambda item: (-item[1].overflowed - item[1].vanished, item[0]))
    return render(
        "export.html",
        charts,
        manifest=facts.manifest,
        comparison=facts.comparison,
        samples={"sets": len(facts.samples), "origin": facts.samples.origin, "drawn": facts.samples.drawn},
        half_nodes=facts.plan.half_nodes,
        nodes=len(facts.plan.computing),
        predicted=facts.predicted,
        single_flops=facts.single_flops,
        single_bytes=facts.single_bytes,
        first_divergence=facts.first_divergence,
        casts=facts.casts,
        losses=losses,
        fp32_bytes=facts.fp32_bytes,
        half_bytes=facts.half_bytes,
        export_error=facts.export_error,
        heaviest=heaviest,
        reasons=_by_reason(facts.plan),
        masks=sorted(facts.plan.masks),
        most=MOST_ROWS,
    )


def bench_report(result: Benchmark) -> str:
    """The page about a benchmark. Raises PackageError when the packages that draw it are missing."""
    groups = [str(timed.half.batch) for timed in result.batches]
    sides = {"fp32": result.fp32, result.precision: result.half}
    charts = {
        "latency": grouped(
            "Median latency",
            groups,
            {
                "fp32": [t.fp32.p50_ms for t in result.batches],
                result.precision: [t.half.p50_ms for t in result.batches],
            },
            unit="ms",
        ),
        "throughput": grouped(
            "Rows per second",
            groups,
            {
                "fp32": [t.fp32.rows_per_s for t in result.batches],
                result.precision: [t.half.rows_per_s for t in result.batches],
            },
            unit="rows/s",
        ),
        "memory": grouped(
            "Size and memory",
            ["model file", "once loaded", "at its peak"],
            {
                name: [
                    (count or 0) / 2**20
                    for count in (side.file_bytes, side.memory.loaded_bytes, side.memory.peak_bytes)
                ]
                for name, side in sides.items()
            },
            unit="MiB",
        ),
        "budget": _budget_chart(result.comparison),
    }
    return render(
        "bench.html",
        charts,
        name=result.name,
        version=result.version,
        precision=result.precision,
        device=result.device,
        machine=result.machine,
        batches=result.batches,
        fp32=result.fp32,
        half=result.half,
        comparison=result.comparison,
        measured_by=result.measured_by,
    )


def budget_use(comparison: Comparison) -> list[tuple[str, float]]:
    """How much of each limit is used, as a share, the most first: 1 is all of it.

    For a metric that must be at least its limit, what is missing to 1 is compared.
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


def _budget_chart(comparison: Comparison) -> str:
    used = budget_use(comparison)[:MOST_BARS]
    if not used:
        return ""
    return bars(
        "Share of the budget", [name for name, _ in used], [100 * share for _, share in used], unit="%", limit=100
    )


def _heaviest(plan: PrecisionPlan) -> list[Decision]:
    found = [decision for decision in plan.decisions.values() if decision.is_half and decision.share]
    return sorted(found, key=lambda decision: -(decision.share or 0.0))[:HEAVIEST]


def _by_reason(plan: PrecisionPlan) -> list[tuple[str, list[Decision]]]:
    """The nodes in FP32 by reason, the most frequent reason first."""
    groups: dict[str, list[Decision]] = {}
    for decision in plan.computing:
        if not decision.is_half:
            groups.setdefault(decision.reason.value, []).append(decision)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))


def require_report_packages() -> None:
    """Raise PackageError, which names the extra, when a page could not be drawn."""
    for package in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "report")
