"""JSON report of a check, for `--json`."""

from __future__ import annotations

from demi.calibration.gate.baseline_comparison import BaselineComparison, MeasureChange
from demi.calibration.gate.bootstrap import Interval
from demi.calibration.gate.check import Check, Outcome, UncheckedBundle
from demi.calibration.gate.evaluation import Evaluation, Task
from demi.calibration.gate.gates import CheckFacts
from demi.plan_changes import NodeChange


def check_to_json(outcome: Outcome) -> dict[str, object]:
    """Return one bundle's result for JSON, which has no infinity: the encoder writes null instead."""
    if isinstance(outcome, UncheckedBundle):
        error = outcome.error
        details = {"message": error.message, "where": error.where, "hint": error.hint, "exit_code": error.exit_code}
        return {"bundle": outcome.bundle, "passed": False, "error": details}
    return _check(outcome)


def _check(check: Check) -> dict[str, object]:
    facts = check.facts
    return {
        "bundle": check.bundle,
        "name": check.name,
        "version": check.version,
        "precision": check.precision,
        "device": check.device,
        "passed": bool(check),
        "failures": check.failures,
        "findings": [
            {"gate": result.gate, "level": finding.level.value, "message": finding.message}
            for result in check.gate_results
            for finding in result.findings
        ],
        "reference_relative_l2": check.reference_error,
        "samples": check.comparison.samples,
        "outputs": check.comparison.outputs,
        "encoder": facts.encoder and _evaluation(facts.encoder),
        "generation": facts.texts and _generation(facts),
        "emulated_relative_l2": check.emulated or None,
        "data": facts.data and _evaluation(facts.data),
        "baseline": facts.baseline and _baseline(facts.baseline),
    }


def _generation(facts: CheckFacts) -> dict[str, object]:
    """Return the tokens on the texts of the export, and the shares that were promised."""
    promised = facts.texts
    assert promised is not None  # a model that generates has them
    return {"tokens": facts.golden.tokens, "budget": promised.least, "at_export": promised.at_export}


def _evaluation(evaluation: Evaluation) -> dict[str, object]:
    return {
        "origin": evaluation.origin,
        "samples": evaluation.samples,
        "outputs": evaluation.comparison.outputs,
        "tokens": evaluation.tokens,
        "task": evaluation.task and _task(evaluation.task),
    }


def _task(task: Task) -> dict[str, object]:
    return {
        "metric": task.half.name,
        "output": task.half.output,
        "fp32": task.fp32.value,
        "half": task.half.value,
        "loss": task.loss,
        "interval": _interval(task.interval),
    }


def _baseline(baseline: BaselineComparison) -> dict[str, object]:
    return {
        "measures": [_measure(each) for each in baseline.measures],
        "plan_changes": [change_to_json(change) for change in baseline.changes],
    }


def _measure(change: MeasureChange) -> dict[str, object]:
    return {
        "measure": change.now.name,
        "output": change.now.output,
        "now": change.now.value,
        "baseline": change.was.value,
        "worse_by": change.worse_by,
        "interval": _interval(change.interval),
        "tolerance": change.was.allowed,
        "within": bool(change),
    }


def _interval(interval: Interval | None) -> dict[str, object] | None:
    if interval is None:
        return None
    return {
        "low": interval.low,
        "high": interval.high,
        "confidence": interval.confidence,
        "resamples": interval.resamples,
        "samples": interval.samples,
        "seed": interval.seed,
    }


def change_to_json(change: NodeChange) -> dict[str, object]:
    """Return one node whose decision differs, for JSON."""
    sides = (("was", change.was), ("now", change.now))
    decisions = {
        name: decision and {"precision": decision.precision, "reason": decision.reason, "evidence": decision.evidence}
        for name, decision in sides
    }
    return {"node": change.node, "op_type": change.op_type, "changed_precision": change.changed_precision} | decisions
