"""Tables and messages that `demi export` and `demi calibrate` share: a plan's decisions, and inputs without values."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from demi.cli.console import Console, significant
from demi.error_sources import ErrorSource, error_sources

if TYPE_CHECKING:
    from demi.calibration.samples import Samples
    from demi.exporter.planning.find_plan import Planned
    from demi.plan import Decision, PrecisionPlan

EXPLAINED = 10
"""Number of nodes that the console explains; plan.json has all."""

TYPE_REASONS = ("no-half-type", "unknown-operator")
"""Reasons that come from an operator's schema; the table names the operators."""

OPERATORS_NAMED = 4
"""Number of operators that a row of the table names."""


def plan_rows(planned: Planned) -> list[list[str]]:
    """Return table rows: nodes by precision and reason, and the share that stays in FP32."""
    rows = decision_rows(planned.plan)
    if share := planned.fp32_share:
        details = f"of the FLOPs, and {share.tensor_bytes:.1%} of the tensor bytes"
        rows.append(["FP32 share", f"{share.flops:.1%}", details])
    return rows


def decision_rows(plan: PrecisionPlan) -> list[list[str]]:
    """Return table rows: nodes by precision and reason."""
    rows = []
    for decision, count in plan.counts():
        precision = plan.precision if decision.is_half else "fp32"
        rows.append([f"nodes in {precision}", str(count), decision.reason.value + _details(plan, decision, count)])
    return rows


def _details(plan: PrecisionPlan, decision: Decision, count: int) -> str:
    """Return the evidence of a single node, or the operators that have no half type."""
    if count == 1:
        return f": {decision.evidence}" if decision.evidence else ""
    if decision.reason.value not in TYPE_REASONS:
        return ""
    return f": {operators(plan, decision.reason.value)}; {decision.evidence}"


def operators(plan: PrecisionPlan, reason: str) -> str:
    """Return the operators with a reason and their counts, the most frequent first."""
    tally = Counter(decision.op_type for decision in plan.computing if decision.reason.value == reason)
    named = ", ".join(f"{count} {op}" for op, count in tally.most_common(OPERATORS_NAMED))
    return named + (f" and {len(tally) - OPERATORS_NAMED} other operators" if len(tally) > OPERATORS_NAMED else "")


def explain_plan(planned: Planned, console: Console) -> None:
    """Print the most important nodes: one for each reason to stay in FP32, then the largest shares of the error."""
    decisions = planned.plan.computing
    single = [d for d in decisions if not d.is_half and d.evidence]
    rows = [_why_single(decision) for decision in _one_of_each_reason(single)]
    rows += [_error_of(source, planned.plan.precision) for source in error_sources(planned.plan)]
    if rows:
        columns = ["node", "operator ", "precision ", "why "]
        console.table("the most important nodes (plan.json has all)", columns, rows[:EXPLAINED])
    if planned.first_divergence:
        console.data(f"with everything in half that the rules allow: {planned.first_divergence}")


def _why_single(decision: Decision) -> list[str]:
    return [decision.node, decision.op_type, "fp32", f"{decision.reason.value}: {decision.evidence}"]


def _error_of(source: ErrorSource, half: str) -> list[str]:
    why = f"{source.share:.1%} of the predicted squared error"
    if len(source.nodes) > 1:
        why += f", measured together ({len(source.nodes)} nodes)"
    elif source.nodes[0].reason.value in ("rescaled", "stable-form"):
        why = f"{source.nodes[0].evidence}; {why}"
    return [source.label, source.operators, half, why]


def predicted_text(planned: Planned, output: str) -> str:
    """Return ` (predicted 0.00161)`, or nothing without a prediction."""
    return f" (predicted {significant(planned.predicted[output])})" if output in planned.predicted else ""


def _one_of_each_reason(decisions: list[Decision]) -> list[Decision]:
    """Return the decisions, one of each reason first."""
    first = {decision.reason: decision for decision in reversed(decisions)}
    leading = [decision for decision in decisions if first[decision.reason] is decision]
    return leading + [decision for decision in decisions if first[decision.reason] is not decision]


def unusable_inputs(samples: Samples) -> list[str]:
    """Return a line for each input that has rows with NaN or infinity, or that is empty in every set."""
    import numpy as np

    lines = []
    for name in samples.feeds[0]:
        if not any(feeds[name].size for feeds in samples.feeds):
            lines.append(f"input `{name}` is empty in every set of {samples.origin}")
        arrays = [feeds[name] for feeds in samples.feeds if feeds[name].dtype.kind == "f"]
        bad = sum(int((~np.isfinite(array)).any(axis=tuple(range(1, array.ndim))).sum()) for array in arrays)
        if bad:
            rows = sum(len(array) if array.ndim else 1 for array in arrays)
            lines.append(f"input `{name}` holds NaN or infinity in {bad:,} of {rows:,} rows of {samples.origin}")
    return lines
