"""Tables of `demi check`: the figures first, the verdict last."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from demi.cli.console import Console, significant

if TYPE_CHECKING:
    from demi.accuracy.compare import TensorDiff
    from demi.accuracy.token_agreement import TokenAgreement
    from demi.calibration.gate.baseline_comparison import BaselineComparison
    from demi.calibration.gate.check import Check
    from demi.calibration.gate.evaluation import Evaluation, Task
    from demi.calibration.gate.gates import TextFacts


def print_check(check: Check, console: Console) -> None:
    """Print the results of one bundle: golden sets and, if given, data, metric and baseline."""
    facts = check.facts
    on = "" if check.device == "cpu" else f" on {check.device}"
    title = f"{check.name} v{check.version} ({check.precision}{on})"
    _print_outputs(f"{title}: {check.comparison.samples} golden sets against FP32", facts.golden, console)
    for name, predicted in check.emulated.items():
        console.data(f"the emulator predicts for `{name}`: {significant(predicted)} relative L2")
    if check.reference_error is not None:
        console.data(f"FP32 reference against golden outputs: {significant(check.reference_error)} relative L2")
    if facts.encoder:
        _print_outputs(f"{title}: {facts.encoder.origin} against FP32", facts.encoder, console)
    if facts.golden.tokens:
        _print_tokens(f"{title}: texts of the export", facts.golden.tokens, facts.texts, console)
    if facts.data:
        samples = f"{title}: {facts.data.samples:,} samples of {facts.data.origin}"
        if facts.data.tokens:
            _print_tokens(samples, facts.data.tokens, facts.texts, console)
        else:
            _print_outputs(f"{samples} against FP32", facts.data, console)
        if facts.data.task:
            _print_task(facts.data.task, console)
    if facts.baseline:
        _print_baseline(facts.baseline, console)
    for line in check.varying:
        console.data(f"random: {line}")
    console.data(f"{check.bundle}: {'passed' if check else 'FAILED'}")


def _print_outputs(title: str, evaluation: Evaluation, console: Console) -> None:
    rows = [
        [
            diff.output,
            _error(diff),
            significant(diff.max_abs),
            f"{diff.cosine:.6f}",
            "-" if diff.top1 is None else f"{diff.top1:.4f}",
            str(diff.non_finite),
            str(diff.limits),
            "within" if diff else "OVER",
        ]
        for diff in evaluation.comparison.outputs
    ]
    columns = ["output", "relative L2", "max abs", "cosine", "top-1", "non-finite", "budget ", "verdict "]
    console.table(title, columns, rows)
    for line in evaluation.comparison.boxes():
        console.data(line)
    for line in evaluation.comparison.unmeasured():
        console.data(f"not comparable: {line}")


def _error(diff: TensorDiff) -> str:
    """Return the relative L2, or for an output of choices the share that agrees."""
    if diff.limits.agree is not None and diff.agree is not None:
        return f"{diff.agree:.4f} agree"
    return significant(diff.relative_l2)


def _print_tokens(title: str, tokens: TokenAgreement, promised: TextFacts | None, console: Console) -> None:
    rows = [
        [
            str(group),
            f"{group.tokens:,}",
            f"{group.same:.2%}",
            "-" if math.isnan(group.relative_l2) else significant(group.relative_l2),
        ]
        for group in tokens.by_step
    ]
    console.table(title, ["steps", "tokens", "like FP32", "relative L2 of the logits "], rows)
    console.data(f"{tokens}; {tokens.whole_texts:,} of {tokens.texts:,} texts throughout{_promised(promised)}")


def _promised(promised: TextFacts | None) -> str:
    if promised is None or promised.least is promised.at_export is None:
        return ""
    return f"; at the export: {promised.at_export:.2%}" if promised.least is None else f"; budget: {promised.least:.2%}"


def _print_task(task: Task, console: Console) -> None:
    console.data(f"{task.half}: FP32 {task.fp32.value:.5g}, half {task.half.value:.5g}, loss {task.loss:.3g}")
    if task.interval:
        console.data(f"loss {task.interval} ({task.interval.method})")


def _print_baseline(compared: BaselineComparison, console: Console) -> None:
    from demi.calibration.gate.measure import figure

    rows = [
        [
            str(each.now),
            figure(each.now.value),
            figure(each.was.value),
            f"{each.worse_by:.3g}",
            str(each.interval or "-"),
            figure(each.was.allowed),
            "within" if each else "WORSE",
        ]
        for each in compared.measures
    ]
    columns = ["measure", "now", "baseline", "worse by", "95% interval", "tolerance", "verdict "]
    console.table("compared with the baseline", columns, rows)
    if method := next((each.interval.method for each in compared.measures if each.interval), None):
        console.data(method)
