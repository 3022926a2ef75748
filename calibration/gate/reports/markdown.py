"""Markdown report of a check, for a job summary or a comment on a change."""

from __future__ import annotations

import re
from collections.abc import Sequence

from demi.calibration.gate.baseline_comparison import BaselineComparison
from demi.calibration.gate.check import Check, Outcome, UncheckedBundle
from demi.calibration.gate.evaluation import Evaluation, Task
from demi.calibration.gate.measure import figure
from demi.plan_changes import NodeChange

MOST_CHANGES = 20
"""Most nodes of a plan that are listed; the JSON report has all of them."""

_PLAIN = re.compile(r"[\w ./:+=%,()-]+")
_SPECIAL = re.compile(r"[&<>|\[\]*\\]")


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return a section for each bundle: the verdict first, then every figure. All names are escaped."""
    return "\n".join(_unchecked(each) if isinstance(each, UncheckedBundle) else _check(each) for each in outcomes)


def _unchecked(outcome: UncheckedBundle) -> str:
    return f"### {code(outcome.bundle)}: could not be checked\n\n{prose(outcome.error.message)}\n"


def _check(check: Check) -> str:
    facts = check.facts
    on = "" if check.device == "cpu" else f" on {check.device}"
    parts = [
        f"### {code(check.name)} v{check.version} ({check.precision}{on}): {'passed' if check else '**FAILED**'}",
        "\n".join(
            f"- **{result.gate if finding.level.value == 'error' else 'warning'}**: {prose(finding.message)}"
            for result in check.gate_results
            for finding in result.findings
        ),
        *(_evaluation(each) for each in facts.evaluations),
        _task(facts.data.task) if facts.data and facts.data.task else "",
        _baseline(facts.baseline) if facts.baseline else "",
        "\n\n".join(f"Random: {prose(line)}" for line in check.varying),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _evaluation(evaluation: Evaluation) -> str:
    """Return the outputs and the generated tokens of one collection of samples."""
    parts = [_outputs(evaluation) if evaluation.comparison.outputs else "", _tokens(evaluation)]
    return "\n\n".join(part for part in parts if part)


def _tokens(evaluation: Evaluation) -> str:
    if (tokens := evaluation.tokens) is None:
        return ""
    rows = [
        [str(group), f"{group.tokens:,}", f"{group.same:.2%}", f"{group.relative_l2:.3g}"] for group in tokens.by_step
    ]
    origin = "the texts of the export" if evaluation.comparison.outputs else prose(evaluation.origin)
    title = (
        f"Generated after FP32's tokens, {origin}: {tokens}; {tokens.whole_texts} of {tokens.texts} texts throughout"
    )
    return f"{title}\n\n{table('steps|tokens|like FP32|relative L2 of the logits', rows)}"


def _outputs(evaluation: Evaluation) -> str:
    rows = [
        [
            code(diff.output),
            f"{diff.relative_l2:.3g}",
            f"{diff.max_abs:.3g}",
            f"{diff.cosine:.6f}",
            "" if diff.top1 is None else f"{diff.top1:.4f}",
            str(diff.non_finite),
            prose(str(diff.limits)),
            "within" if diff else "**over**",
        ]
        for diff in evaluation.comparison.outputs
    ]
    title = f"Half against FP32 on {evaluation.samples:,} samples: {prose(evaluation.origin)}"
    shown = table("output|relative L2|max abs|cosine|top-1|non-finite|budget|verdict", rows)
    boxes = "".join(f"\n\nBoxes of {prose(line)}" for line in evaluation.comparison.boxes())
    unknown = "".join(f"\n\nNot comparable: {prose(line)}" for line in evaluation.comparison.unmeasured())
    return f"{title}\n\n{shown}{boxes}{unknown}"


def _task(task: Task) -> str:
    row = [prose(str(task.half)), f"{task.fp32.value:.5g}", f"{task.half.value:.5g}", f"{task.loss:.3g}"]
    shown = table("metric|FP32|half|loss|95% interval", [[*row, str(task.interval or "")]])
    return shown + (f"\n\n{task.interval.method}" if task.interval else "")


def _baseline(baseline: BaselineComparison) -> str:
    rows = [
        [
            prose(str(each.now)),
            figure(each.now.value),
            figure(each.was.value),
            f"{each.worse_by:.3g}",
            str(each.interval or ""),
            figure(each.was.allowed),
            "within" if each else "**worse**",
        ]
        for each in baseline.measures
    ]
    shown = [table("measure|now|baseline|worse by|95% interval|tolerance|verdict", rows)]
    shown += [each.interval.method for each in baseline.measures[:1] if each.interval]
    if baseline.changes:
        shown.append(_changes(baseline.changes))
    return "\n\n".join(shown)


def _changes(changes: Sequence[NodeChange]) -> str:
    rows = [
        [
            code(change.node),
            *(f"{side.precision.label} ({side.reason.value})" if side else "" for side in (change.was, change.now)),
        ]
        for change in changes[:MOST_CHANGES]
    ]
    more = f"\n\nand {len(changes) - MOST_CHANGES:,} more" if len(changes) > MOST_CHANGES else ""
    return "Nodes whose precision or reason changed\n\n" + table("node|baseline|now", rows) + more


def table(columns: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table. `columns` are separated by `|`; cells must be escaped."""
    names = columns.split("|")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def code(text: str) -> str:
    """Return a name as inline code, or as escaped text when it holds characters that could end the code."""
    return f"`{text}`" if _PLAIN.fullmatch(text) else prose(text).replace("`", "&#96;")


def prose(text: str) -> str:
    """Return text on one line in which only backticks are markup."""
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", visible)
