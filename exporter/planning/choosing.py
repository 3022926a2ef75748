"""Choose a plan: the cheapest one if it is within the budget, else as much of it as measured sensitivities allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import onnx_ir as ir

from demi.calibration.deadline import Deadline
from demi.calibration.emulation.sensitivity import Sensitivities, Survey
from demi.calibration.emulation.switches import input_source
from demi.calibration.emulation.trials import TrialRunner
from demi.exporter.operators import schemas
from demi.exporter.operators.schemas import Operands
from demi.exporter.planning.constraints import Pins
from demi.exporter.planning.costs import Sizes
from demi.exporter.planning.measured_facts import Measured
from demi.exporter.planning.node_patterns import forced_nodes
from demi.exporter.planning.plan_settings import PlanSettings
from demi.exporter.planning.planner import Assignment, Planner, source_of
from demi.exporter.planning.repair_state import Repair
from demi.exporter.planning.scatter import Repeated
from demi.exporter.planning.trial_samples import SEARCH_ELEMENTS, explaining_runner, trial_elements
from demi.exporter.planning.verified_plan import (
    AIM,
    NEGLIGIBLE,
    WORTH_CLIMBING,
    Verifier,
    is_verified,
    plan_within,
)
from demi.progress import Report, Step
from demi.tensors import Feeds

REFINEMENT_ELEMENTS = 96 * SEARCH_ELEMENTS
"""Elements that all trials of a refinement may compute: a few seconds on two cores."""

TRIALS_PER_ROUND = 12
"""Trials between two solutions of the cut: each round uses the finer sensitivities of the one before."""

IDLE_ROUNDS = 2
"""Rounds without a cheaper solution after which sensitivities are not refined further."""

REJECT_BEYOND = 2 * AIM
"""The share of the budget on the worst samples beyond which the cheapest plan is not verified on all of them."""


@dataclass(frozen=True, slots=True)
class Search:
    """Inputs of the minimum cut."""

    facts: Measured
    constraints: Pins
    repaired: Repair
    sizes: Sizes
    settings: PlanSettings
    deadline: Deadline
    sets: Sequence[Feeds]

    @property
    def forced(self) -> frozenset[str]:
        """Nodes that the user forces to half, overriding measurements."""
        return forced_nodes(self.facts.model, self.settings.force_half, self.settings.keep_fp32)

    @property
    def pinned(self) -> set[str]:
        """Nodes that stay single, overriding measurements."""
        return self.constraints.keys() | (self.repaired.cones - self.forced)

    def planner(self) -> Planner:
        """Return the cut problem, without sensitivities yet."""
        return Planner(
            self.facts.model,
            self.facts.operands,
            self.sizes,
            self.settings.device,
            Sensitivities({}, frozenset(), 0),
            self.pinned,
            self.forced,
            self.settings.half_io,
            self.settings.half_names,
        )

    def survey(self, runner: TrialRunner, *, fits: bool = False) -> Survey:
        """Measure the sensitivities of groups of nodes, to be refined; with `fits`, no node is a suspect.

        Suspects are measured apart from the other nodes, because one overflow would hide the errors of all others:

        - nodes that repair pinned for their error; the cut makes those half again that turn out to be harmless;
        - readers of constrained nodes, whose error comes from rounding the tensors that they read.
        """
        model, operands, pinned = self.facts.model, self.facts.operands, self.pinned
        apart = set() if fits else self.repaired.pinned.keys() | _readers_of(model, operands, pinned)
        allowed = [name for name, found in operands.items() if found and name not in pinned]
        suspects = [name for name in allowed if name in apart]
        others = [name for name in allowed if name not in apart]
        sources = [input_source(value.name or "") for value in model.graph.inputs if schemas.is_float(value)]
        return Survey(runner, [*sources, *others], suspects, self.deadline)


def cheapest_within(planner: Planner, runner: TrialRunner, verifier: Verifier) -> Assignment | None:
    """Return the cheapest assignment of all if an emulated run shows that it is within the budget, else None.

    Such an assignment needs no measured sensitivities. `runner` is tried before `verifier`, which takes longer.
    """
    cheapest = planner.assign(math.inf)
    if runner.load(runner.compare(cheapest.half)) > REJECT_BEYOND:
        return None
    return cheapest if is_verified(verifier, cheapest) else None


def survey_for(search: Search, runner: TrialRunner, verifier: TrialRunner, chosen: Assignment | None) -> Survey:
    """Return a survey of the nodes' sensitivities, measured by `runner` if a plan is still to be chosen.

    If a plan is chosen already, the one set of samples that adds most to its error is enough to find the causes.
    """
    if chosen is None:
        return search.survey(runner)
    part = explaining_runner(search.facts.model, verifier, chosen.half, search.facts.profile, search.sets)
    survey = search.survey(part, fits=True)
    return survey if survey.is_finite else search.survey(runner)  # an output of zeros has no relative error


def choose(search: Search, survey: Survey, planner: Planner, verifier: Verifier, step: Step) -> Assignment:
    """Return the cheapest verified assignment, with sensitivities as fine as the choice needs.

    If the first one forgoes more than `NEGLIGIBLE` of the possible gain, groups are split and the cut is solved again.
    """
    with step("solving for the cheapest plan"):
        found = plan_within(planner, verifier)
    if found.forgone <= NEGLIGIBLE:
        return found
    with step("measuring sensitivities one by one") as report:
        work = trial_elements(search.facts.model, survey.runner, search.facts.profile, search.sets)
        trials = min(search.settings.trials, int(REFINEMENT_ELEMENTS / max(work, 1)))
        is_settled = not refine(survey, planner, found, trials, report) and is_verified(verifier, found)
    target = second_target(planner.with_new_prediction(found), is_settled=is_settled)
    if target is None:
        return found
    with step("solving for the cheapest plan"):
        better = plan_within(planner, verifier, target)
    return better if better.forgone <= found.forgone else found


def second_target(found: Assignment, *, is_settled: bool) -> float | None:
    """Return the target to begin with when the cut is solved again; None if the first plan stays.

    A settled plan is verified, and refined sensitivities found no cheaper one with the same predicted error. It stays
    unless much is forgone: with refined sensitivities, another plan that uses the whole budget may verify.
    """
    if found.forgone > WORTH_CLIMBING:
        return AIM
    return None if is_settled else max(found.predicted, default=0.0) or AIM


def refine(survey: Survey, planner: Planner, found: Assignment, trials: int, report: Report | None) -> bool:
    """Split the groups whose nodes could save most, a few at a time, until the gain they hold back is negligible.

    Rounds that do not find a cheaper assignment with the same predicted error are not followed by many others: where
    errors scatter, finer sensitivities only show the scatter. Returns True if the last one is cheaper than `found`.
    """
    target = max(found.predicted, default=AIM) or AIM
    again, least, idle = found, found.forgone, 0
    for done in range(0, trials, TRIALS_PER_ROUND):
        if report is not None:
            report(done / trials)
        if not survey.refine(TRIALS_PER_ROUND, planner.worth(again), NEGLIGIBLE / 4):
            break
        planner.use_sensitivities(survey.result)
        again = planner.assign(target)
        if again.forgone <= NEGLIGIBLE:
            break
        idle = 0 if again.forgone < least else idle + 1
        least = min(least, again.forgone)
        if idle == IDLE_ROUNDS:
            break
    return again.forgone < found.forgone


def scaled_to_trial(
    planner: Planner, found: Assignment, known: Sensitivities, runner: TrialRunner, repeated: Repeated
) -> tuple[Assignment, Sensitivities]:
    """Return an assignment and the sensitivities, scaled to the measured errors of its emulated runs."""
    sets = repeated.repeat(found.half).contributions
    mean = {name: math.sqrt(sum(each[name] for each in sets)) for name in sets[0]} if sets else {}
    seen = [
        max(diff.relative_l2 / runner.scale(diff.output), mean.get(diff.output, 0.0))
        for diff in runner.compare(found.half).outputs
    ]
    planner.use_sensitivities(known)
    predicted = planner.with_new_prediction(found).predicted
    factors = [
        (have / expected) ** 2 if expected > 0 and math.isfinite(have / expected) and have > 0 else 1.0
        for have, expected in zip(seen, predicted, strict=True)
    ]
    scaled = known.scaled(factors)
    planner.use_sensitivities(scaled)
    return planner.with_new_prediction(found), scaled


def _readers_of(model: ir.Model, operands: Mapping[str, Operands], single: AbstractSet[str]) -> set[str]:
    """Return the nodes that would read results of `single` in half, directly or through exact operators."""
    found = set()
    for node in model.graph.all_nodes():
        positions = operands[node.name or ""].inputs if node.name in operands else frozenset()
        read = [value for i, value in enumerate(node.inputs) if i in positions and value is not None]
        if any(value.producer() is not None and source_of(value) in single for value in read):
            found.add(node.name or "")
    return found
