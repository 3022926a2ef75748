"""HTML report of an export: accuracy, the precision plan and its reasons, weights that lose values, and sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from demi.accuracy.compare import Comparison
from demi.accuracy.token_agreement import TokenAgreement
from demi.bundles.manifest import Manifest
from demi.calibration.profile import Range
from demi.calibration.report.budget_use import budget_chart
from demi.calibration.report.charts import bars
from demi.calibration.report.page import render, safe
from demi.calibration.report.ranges import range_rows
from demi.calibration.samples import Samples
from demi.error_sources import ErrorSource, error_sources
from demi.float16 import HalfLoss, half_format
from demi.plan import Decision, PrecisionPlan

HEAVIEST = 15
"""Nodes in the chart of errors: those with the largest shares."""
MOST_ROWS = 200
"""Most rows of a table; the JSON files beside the report hold all of them."""


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """Content of an export's report."""

    manifest: Manifest
    plan: PrecisionPlan
    comparison: Comparison
    samples: Samples
    predicted: Mapping[str, float]
    single_flops: float | None
    """Share of the FLOPs that stays in FP32; None where no sizes were observed."""
    single_bytes: float | None
    """The same share of the tensor bytes."""
    first_divergence: str | None
    casts: int
    losses: Mapping[str, HalfLoss]
    fp32_bytes: int
    half_bytes: int
    export_error: float | None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Values of each tensor over the samples."""
    tokens: TokenAgreement | None = None
    """The tokens of a model that generates, beside FP32's."""


def export_report(facts: ExportFacts) -> str:
    """Return the page of an export; it does not depend on the time at which it is made.

    Raises PackageError when matplotlib or Jinja is missing.
    """
    heaviest = error_sources(facts.plan)[:HEAVIEST]
    charts = {"budget": budget_chart(facts.comparison)}
    if heaviest:
        charts["nodes"] = bars(
            "Share of the predicted squared error by node",
            [source.label for source in heaviest],
            [100 * source.share for source in heaviest],
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
        tokens=facts.tokens,
        heaviest=[(source, alone(source)) for source in heaviest],
        ranges=[(row, safe(row.histogram)) for row in range_rows(facts.ranges, half_format(facts.manifest.precision))],
        tensors=len(facts.ranges),
        reasons=_by_reason(facts.plan),
        masks=sorted(facts.plan.masks),
        most=MOST_ROWS,
    )


def alone(source: ErrorSource) -> float | None:
    """Return the error that a source causes by itself, as a share of the budget; None if it was not measured."""
    known = [node.sensitivity for node in source.nodes if node.sensitivity is not None]
    return math.sqrt(sum(sensitivity**2 for sensitivity in known)) if known else None


def _by_reason(plan: PrecisionPlan) -> list[tuple[str, list[Decision]]]:
    """Group the FP32 nodes by reason, the most frequent reason first."""
    groups: dict[str, list[Decision]] = {}
    for decision in plan.computing:
        if not decision.is_half:
            groups.setdefault(decision.reason.value, []).append(decision)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
