"""The result of a check as plain data, for `--json`."""

from __future__ import annotations

from demi.calibration.gate.bootstrap import Interval
from demi.calibration.gate.check import Broken, Check, Outcome
from demi.calibration.gate.evaluation import Evaluation, Task
from demi.calibration.gate.gates import Compared, Worsening
from demi.calibration.gate.plans import NodeChange


def document(outcome: Outcome) -> dict[str, object]:
    """One bundle's result; JSON has no infinity, so what is infinite becomes null there."""
    if isinstance(outcome, Broken):
        error = outcome.error
        told = {"message": error.message, "where": error.where, "hint": error.hint, "exit_code": error.exit_code}
        return {"bundle": outcome.bundle, "passed": False, "error": told}
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
            {"gate": verdict.gate, "level": finding.level.value, "message": finding.message}
            for verdict in check.verdicts
            for finding in verdict.findings
        ],
        "reference_relative_l2": check.reference_error,
        "samples": check.comparison.samples,
        "outputs": check.comparison.outputs,
        "data": facts.data and _evaluation(facts.data),
        "baseline": facts.compared and _compared(facts.compared),
    }


def _evaluation(evaluation: Evaluation) -> dict[str, object]:
    return {
        "origin": evaluation.origin,
        "samples": evaluation.samples,
        "outputs": evaluation.comparison.outputs,
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


def _compared(compared: Compared) -> dict[str, object]:
    return {
        "measures": [_worsening(each) for each in compared.worsenings],
        "plan_changes": [change_document(change) for change in compared.changes],
    }


def _worsening(worsening: Worsening) -> dict[str, object]:
    return {
        "measure": worsening.now.name,
        "output": worsening.now.output,
        "now": worsening.now.value,
        "baseline": worsening.was.value,
        "worse_by": worsening.worse_by,
        "interval": _interval(worsening.interval),
        "tolerance": worsening.was.allowed,
        "within": bool(worsening),
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


def change_document(change: NodeChange) -> dict[str, object]:
    """One node whose decision is another."""
    sides = (("was", change.was), ("now", change.now))
    decisions = {
        name: decision and {"precision": decision.precision, "reason": decision.reason, "evidence": decision.evidence}
        for name, decision in sides
    }
    return {"node": change.node, "op_type": change.op_type, "changed_side": change.changed_side} | decisions
