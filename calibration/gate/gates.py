"""The gates: small rules, each from the facts about one bundle to its findings.

A gate returns an empty sequence when it passes, and None when it does not apply (no baseline, no labels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from demi.accuracy.token_agreement import TokenAgreement
from demi.calibration.gate.baseline_comparison import BaselineComparison
from demi.calibration.gate.evaluation import Evaluation
from demi.calibration.gate.measure import figure

REFERENCE_TOLERANCE = 1e-3
"""Most relative L2 between the FP32 reference, run here, and the golden outputs: machines sum in different orders."""

LOST_TOKENS = 0.01
"""Largest share of tokens that half may lose since the export, where no limit is set; one token may always change.
Machines sum in different orders, which turns close decisions."""

SIZES = frozenset({"model_bytes", "fp32_nodes"})
"""Measures of the model itself, which do not depend on samples."""


class Level(Enum):
    """Severity of a finding: an error fails the check, a warning is only reported."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem, as a sentence for the user."""

    level: Level
    message: str


@dataclass(frozen=True, slots=True)
class Rules:
    """The user's choices for the gates."""

    max_loss: float | None = None
    """The most that a task metric may lose from FP32 to half; None sets no limit."""
    plan_changes: Level | None = Level.WARNING
    """Severity of a node that changed precision; None ignores it."""


@dataclass(frozen=True, slots=True)
class TextFacts:
    """The shares of tokens that a model which generates has promised to choose as FP32 does."""

    least: float | None
    """The limit of the budget; None without one."""
    at_export: float | None
    """The share that was measured at the export, on the recorded texts; None if it is not known."""


@dataclass(frozen=True, slots=True)
class CheckFacts:
    """Everything that was measured of one bundle: the input of the gates."""

    golden: Evaluation
    data: Evaluation | None
    reference_error: float | None
    """Relative L2 of the FP32 reference, run here, against the golden outputs; None without a reference."""
    baseline: BaselineComparison | None
    rules: Rules
    rescaling: tuple[str, ...] | None = None
    """Errors in the certificate of a rescaled model; None for a model that was not rescaled."""
    encoder: Evaluation | None = None
    """The encoder of a model that generates, on its own golden sets."""
    texts: TextFacts | None = None
    """None for a model that does not generate."""

    @property
    def evaluations(self) -> list[Evaluation]:
        """Return the evaluation on the golden sets, the encoder's, and the one on the user's data, if there are any."""
        return [each for each in (self.golden, self.encoder, self.data) if each]


def within_budget(facts: CheckFacts) -> Sequence[Finding]:
    """Require every output to be within its limits, and warn of outputs that could not be measured."""
    findings = []
    for evaluation in facts.evaluations:
        on = "" if evaluation is facts.golden else f" (on {evaluation.origin})"
        findings += [_error(line + on) for line in evaluation.comparison.failures()]
        findings += [
            Finding(Level.WARNING, f"`{diff.output}`: its accuracy is unknown: FP32 returns no finite value{on}")
            for diff in evaluation.comparison.outputs
            if diff.unmeasured and diff.unmeasured == diff.elements
        ]
        findings += [
            Finding(
                Level.WARNING, f"`{diff.output}`: the accuracy of its boxes is unknown: FP32 finds none that count{on}"
            )
            for diff in evaluation.comparison.outputs
            if diff.found == 0
        ]
    return findings


def tokens_hold(facts: CheckFacts) -> Sequence[Finding] | None:
    """Require half to choose FP32's tokens as often as the budget demands, else as often as at the export."""
    promised = facts.texts
    if promised is None:
        return None
    findings = [
        _error(f"{tokens}, and {why}{'' if evaluation is facts.golden else f' (on {evaluation.origin})'}")
        for evaluation in facts.evaluations
        if (tokens := evaluation.tokens) and (why := _broken(tokens, promised, recorded=evaluation is facts.golden))
    ]
    if facts.golden.tokens is None and not (facts.data and facts.data.tokens):
        findings.append(
            Finding(
                Level.WARNING,
                "no text was generated: the bundle holds none of its export; export it again, or give texts or sounds with --data",
            )
        )
    return findings


def _broken(tokens: TokenAgreement, promised: TextFacts, *, recorded: bool) -> str:
    """Return the promise that these texts break; empty if they keep it. The export's own share is for its texts only."""
    if tokens.non_finite:
        return f"its logits are NaN or infinite at {tokens.non_finite:,} of them"
    if promised.least is not None:
        return f"the budget demands {promised.least:.2%}" if tokens.same < promised.least else ""
    if promised.at_export is None or not recorded:
        return ""
    lost = (promised.at_export - tokens.same) * tokens.tokens
    return f"at the export it was {promised.at_export:.2%}" if lost > max(1.5, LOST_TOKENS * tokens.tokens) else ""


def reference_holds(facts: CheckFacts) -> Sequence[Finding] | None:
    """Require the FP32 model to return what it returned at export."""
    error = facts.reference_error
    if error is None:
        return None
    if error <= REFERENCE_TOLERANCE:
        return []
    return [
        _error(
            f"the FP32 reference differs from the golden outputs by {error:.3g} relative L2 (allowed: {REFERENCE_TOLERANCE:g})"
        )
    ]


def rescaling_holds(facts: CheckFacts) -> Sequence[Finding] | None:
    """Require every operator of a rescaled model to pass its powers of two on, so that they cancel for all inputs."""
    return None if facts.rescaling is None else [_error(problem) for problem in facts.rescaling]


def task_holds(facts: CheckFacts) -> Sequence[Finding] | None:
    """Require the task metric to lose no more than `max_loss` from FP32 to half; warn of a loss without a limit."""
    task = facts.data.task if facts.data else None
    if task is None:
        return None
    scores = f"{task.half}: {task.half.value:.5g} in half, {task.fp32.value:.5g} in FP32"
    if not math.isfinite(task.half.value):
        return [_error(scores)]
    limit = facts.rules.max_loss
    if limit is not None:
        lost = f"{scores}: a loss of {task.loss:.3g}, at most {limit:g} is allowed"
        return [] if task.loss <= limit else [_error(lost)]
    if task.loss > 0 and facts.baseline is None:
        return [
            Finding(
                Level.WARNING, f"{scores}: no limit is set for the loss of {task.loss:.3g}; set one with --max-loss"
            )
        ]
    return []


def no_worse_than_baseline(facts: CheckFacts) -> Sequence[Finding] | None:
    """Require that no measure of accuracy is worse than in the baseline, with confidence, by more than its tolerance."""
    if facts.baseline is None:
        return None
    return [
        *_worse(facts.baseline, sizes=False),
        *(
            Finding(Level.WARNING, f"{measure} is not in the baseline, so it was not compared")
            for measure in facts.baseline.new
        ),
    ]


def no_larger_than_baseline(facts: CheckFacts) -> Sequence[Finding] | None:
    """Require that neither the model's size nor its share of FP32 nodes grew by more than its tolerance."""
    return None if facts.baseline is None else _worse(facts.baseline, sizes=True)


def plan_holds(facts: CheckFacts) -> Sequence[Finding] | None:
    """Require every node to compute in the same precision as in the baseline."""
    level = facts.rules.plan_changes
    if facts.baseline is None or level is None:
        return None
    changes = facts.baseline.changes
    return [Finding(level, f"{change} changed precision") for change in changes if change.changed_precision]


GATES: dict[str, Callable[[CheckFacts], Sequence[Finding] | None]] = {
    "over budget": within_budget,
    "tokens differ": tokens_hold,
    "reference differs": reference_holds,
    "rescaling refuted": rescaling_holds,
    "metric lost": task_holds,
    "worse than the baseline": no_worse_than_baseline,
    "grown": no_larger_than_baseline,
    "plan changed": plan_holds,
}
"""Every gate, by the name that reports give its failure."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """Findings of one gate; truthy when none is an error."""

    gate: str
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return not self.errors

    @property
    def errors(self) -> list[str]:
        """Return the messages that fail the check."""
        return [each.message for each in self.findings if each.level is Level.ERROR]

    @property
    def warnings(self) -> list[str]:
        """Return the messages that are only reported."""
        return [each.message for each in self.findings if each.level is Level.WARNING]


def apply_gates(facts: CheckFacts) -> tuple[GateResult, ...]:
    """Apply every gate. Errors name the first node whose precision or reason changed: the place to look first."""
    changes = facts.baseline.changes if facts.baseline else ()
    hint = f"; the first node whose reason changed: {changes[0]}" if changes else ""
    return tuple(
        GateResult(gate, tuple(found if gate == "plan changed" else _with_hint(found, hint) for found in findings))
        for gate, look in GATES.items()
        if (findings := look(facts)) is not None
    )


def _with_hint(finding: Finding, hint: str) -> Finding:
    return Finding(finding.level, finding.message + hint) if finding.level is Level.ERROR else finding


def _worse(baseline: BaselineComparison, *, sizes: bool) -> list[Finding]:
    return [
        _error(
            f"{each.now} is {figure(each.now.value)}, the baseline {figure(each.was.value)}: worse by {each.worse_by:.3g}"
            + (f" (at least {each.interval.low:.3g}: {each.interval.method})" if each.interval else "")
            + f", at most {figure(each.was.allowed)} is tolerated"
        )
        for each in baseline.measures
        if (each.now.name in SIZES) is sizes and not each
    ]


def _error(message: str) -> Finding:
    return Finding(Level.ERROR, message)
