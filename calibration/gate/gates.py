"""The gates: tiny rules that look at the facts of one bundle and answer with findings, or with none.

A gate that does not apply (no baseline, no labels) answers None: it has not passed, it was not asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from demi.calibration.gate.baseline import StoredMeasure
from demi.calibration.gate.bootstrap import Interval
from demi.calibration.gate.evaluation import Evaluation
from demi.calibration.gate.measure import Measure, figure
from demi.calibration.gate.plans import NodeChange

REFERENCE_TOLERANCE = 1e-3
"""Relative L2 allowed between the FP32 reference here and the golden outputs: other machines sum in other orders."""

SIZES = frozenset({"model_bytes", "fp32_nodes"})
"""Measures of the model itself, which no samples stand behind."""


class Level(Enum):
    """What a finding does: an error fails the check, a warning is told."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be, in words."""

    level: Level
    message: str


@dataclass(frozen=True, slots=True)
class Worsening:
    """One measure beside its baseline; truthy when it is not worse, with confidence, by more than its tolerance."""

    now: Measure
    was: StoredMeasure
    interval: Interval | None
    """Of how much worse it is; None for a measure without samples behind it, which is compared as it is."""

    @property
    def worse_by(self) -> float:
        """How much worse the value is; negative when it is better."""
        return self.now.worse_than(self.was.value)

    def __bool__(self) -> bool:
        surely = self.interval.low if self.interval else self.worse_by
        return surely <= self.was.allowed  # False for NaN


@dataclass(frozen=True, slots=True)
class Compared:
    """One bundle beside its entry in a baseline."""

    worsenings: tuple[Worsening, ...]
    new: tuple[Measure, ...]
    """Measures that the baseline does not hold."""
    changes: tuple[NodeChange, ...]
    """Of the plan."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user chose to be strict about."""

    max_loss: float | None = None
    """The most that a task metric may lose from FP32 to half."""
    plan_changes: Level | None = Level.WARNING
    """What a node that changed side is; None to let it pass."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was measured of one bundle, for the gates to look at."""

    golden: Evaluation
    data: Evaluation | None
    reference_error: float | None
    compared: Compared | None
    rules: Rules

    @property
    def evaluations(self) -> list[Evaluation]:
        """The golden sets, and the user's data where there is any."""
        return [self.golden, self.data] if self.data else [self.golden]


def within_budget(facts: Facts) -> Sequence[Finding]:
    """Every output is within its limits, on the golden sets and on the data; one of which nothing is known is told."""
    findings = []
    for evaluation in facts.evaluations:
        on = "" if evaluation is facts.golden else f" (on {evaluation.origin})"
        findings += [_error(line + on) for line in evaluation.comparison.failures()]
        findings += [
            Finding(Level.WARNING, f"`{diff.output}`: nothing is known of its accuracy: FP32 has no finite answer{on}")
            for diff in evaluation.comparison.outputs
            if diff.unmeasured and diff.unmeasured == diff.elements
        ]
        findings += [
            Finding(Level.WARNING, f"`{diff.output}`: nothing is known of its boxes: FP32 finds none that count{on}")
            for diff in evaluation.comparison.outputs
            if diff.found == 0
        ]
    return findings


def reference_holds(facts: Facts) -> Sequence[Finding] | None:
    """The FP32 model still answers what it did when it was exported."""
    error = facts.reference_error
    if error is None:
        return None
    if error <= REFERENCE_TOLERANCE:
        return []
    return [
        _error(
            f"the FP32 reference differs from the golden outputs by {error:.3g} relative L2 (at most {REFERENCE_TOLERANCE:g})"
        )
    ]


def task_holds(facts: Facts) -> Sequence[Finding] | None:
    """The task metric loses no more than it may from FP32 to half; a loss that nothing limits is told."""
    task = facts.data.task if facts.data else None
    if task is None:
        return None
    told = f"{task.half}: {task.half.value:.5g} in half, {task.fp32.value:.5g} in FP32"
    if not math.isfinite(task.half.value):
        return [_error(told)]
    limit = facts.rules.max_loss
    if limit is not None:
        lost = f"{told}: a loss of {task.loss:.3g}, at most {limit:g} is allowed"
        return [] if task.loss <= limit else [_error(lost)]
    if task.loss > 0 and facts.compared is None:
        return [
            Finding(Level.WARNING, f"{told}: no limit is set for the loss of {task.loss:.3g}; give one with --max-loss")
        ]
    return []


def no_worse_than_baseline(facts: Facts) -> Sequence[Finding] | None:
    """No measure of the answers is worse than in the baseline, with confidence, by more than its tolerance."""
    if facts.compared is None:
        return None
    return [
        *_worse(facts.compared, sizes=False),
        *(
            Finding(Level.WARNING, f"{measure} is not in the baseline: it is compared with nothing")
            for measure in facts.compared.new
        ),
    ]


def no_larger_than_baseline(facts: Facts) -> Sequence[Finding] | None:
    """Neither the model nor its share in FP32 has grown by more than it may."""
    return None if facts.compared is None else _worse(facts.compared, sizes=True)


def plan_holds(facts: Facts) -> Sequence[Finding] | None:
    """No node computes in another precision than in the baseline."""
    level = facts.rules.plan_changes
    if facts.compared is None or level is None:
        return None
    return [Finding(level, f"{change} changed side") for change in facts.compared.changes if change.changed_side]


GATES: dict[str, Callable[[Facts], Sequence[Finding] | None]] = {
    "over budget": within_budget,
    "reference differs": reference_holds,
    "metric lost": task_holds,
    "worse than the baseline": no_worse_than_baseline,
    "grown": no_larger_than_baseline,
    "plan changed": plan_holds,
}
"""Every gate, by the words that tell its failure."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one gate found; truthy when nothing is an error."""

    gate: str
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return not self.errors

    @property
    def errors(self) -> list[str]:
        """The findings that fail the check."""
        return [each.message for each in self.findings if each.level is Level.ERROR]

    @property
    def warnings(self) -> list[str]:
        """The findings that are only told."""
        return [each.message for each in self.findings if each.level is Level.WARNING]


def judge(facts: Facts) -> tuple[Verdict, ...]:
    """What every gate that applies says. An error names the first node whose reason changed, since that is where to look."""
    changes = facts.compared.changes if facts.compared else ()
    hint = f"; the first node whose reason changed: {changes[0]}" if changes else ""
    return tuple(
        Verdict(gate, tuple(found if gate == "plan changed" else _with_hint(found, hint) for found in findings))
        for gate, look in GATES.items()
        if (findings := look(facts)) is not None
    )


def _with_hint(finding: Finding, hint: str) -> Finding:
    return Finding(finding.level, finding.message + hint) if finding.level is Level.ERROR else finding


def _worse(compared: Compared, *, sizes: bool) -> list[Finding]:
    return [
        _error(
            f"{each.now} is {figure(each.now.value)}, the baseline {figure(each.was.value)}: worse by {each.worse_by:.3g}"
            + (f" ({each.interval.low:.3g} at least: {each.interval.method})" if each.interval else "")
            + f", at most {figure(each.was.allowed)} is tolerated"
        )
        for each in compared.worsenings
        if (each.now.name in SIZES) is sizes and not each
    ]


def _error(message: str) -> Finding:
    return Finding(Level.ERROR, message)
