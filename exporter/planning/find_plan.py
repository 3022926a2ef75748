"""Find the precision plan of a prepared model: observe, constrain, repair, measure, solve, verify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from demi.calibration.deadline import Deadline
from demi.calibration.emulation.switchable import Emulator
from demi.calibration.emulation.trials import TrialRunner
from demi.calibration.observe import observe
from demi.calibration.profile import RangeProfile
from demi.calibration.samples import Samples
from demi.exporter.operators.epsilons import floored
from demi.exporter.operators.mask_constants import saturate
from demi.exporter.planning.choosing import Search, cheapest_within, choose, scaled_to_trial, survey_for
from demi.exporter.planning.constraints import constrain
from demi.exporter.planning.costs import Sizes
from demi.exporter.planning.decision_margins import protect_decisions
from demi.exporter.planning.measured_facts import Measured, measured_facts
from demi.exporter.planning.node_patterns import check_controls, forced_nodes
from demi.exporter.planning.op_list import objection, op_list_plan
from demi.exporter.planning.plan_settings import PlanSettings as PlanSettings
from demi.exporter.planning.planner import Assignment, Planner
from demi.exporter.planning.reasons import Story, explain
from demi.exporter.planning.repair import repair
from demi.exporter.planning.repair_state import Graph, Repair
from demi.exporter.planning.scatter import Repeated
from demi.exporter.planning.screened import Screened
from demi.exporter.planning.trial_samples import (
    VERIFYING_SETS,
    repeating_runner,
    runs_at_once,
    scale_to_rows,
    search_runner,
    trial_feeds,
    verifying_runner,
)
from demi.exporter.planning.verified_plan import plan_within
from demi.float16 import half_format
from demi.plan import PrecisionPlan
from demi.progress import Step, silent
from demi.tensors import Array

ORDINARY = 2.0
"""Relative error, in units of half's epsilon, of ordinary rounding: four times the largest error of one rounding."""


@dataclass(frozen=True, slots=True)
class Fp32Share:
    """The shares of a model's work that its plan leaves in FP32."""

    flops: float
    tensor_bytes: float


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with the measurements behind it."""

    plan: PrecisionPlan
    profile: RangeProfile = field(default_factory=RangeProfile)
    predicted: Mapping[str, float] = field(default_factory=dict)
    """Predicted relative L2 of each output."""
    fp32_share: Fp32Share | None = None
    """The shares that stay in FP32; None if no sizes were observed, as for a plan that the user gives."""
    first_divergence: str | None = None
    """Origin of the first non-finite value or large error with every node in half that the rules allow; else None."""
    trials: int = 0


def find_plan(
    prepared: ir.Model,
    samples: Samples,
    settings: PlanSettings,
    step: Step = silent,
    profile: RangeProfile | None = None,
) -> Planned:
    """Return the precision plan of a prepared model: measured and solved, or from the op list with `calibrate=False`.

    `profile` holds its ranges over all samples where they were observed before.

    Raises InputError for a pattern that matches no node or contradicts another, and ConversionError if a node that is
    forced to half cannot be half. The caller verifies on the converted model that the plan is within the budget on all
    samples.
    """
    fmt = half_format(settings.precision)
    check_controls(prepared, settings.keep_fp32, settings.force_half)
    if not settings.calibrate:
        return Planned(op_list_plan(prepared, fmt, settings.keep_fp32, settings.force_half))
    if profile is None:
        with step("observing ranges"):
            profile = observe(prepared, samples)
    facts = measured_facts(prepared, fmt, profile, settings.keep_fp32)
    constraints = constrain(facts, settings.force_half)
    operands = {name: found for name, found in facts.operands.items() if found and name not in constraints}
    weights = {value.name or "": saturate(_numbers(value), fmt) for value in facts.masks.constants}
    weights |= {value.name or "": floored(_numbers(value), fmt) for value in facts.epsilons}
    deadline = Deadline(settings.search_seconds)
    kernels = settings.fusing(prepared) if settings.fusing is not None else {}
    with Emulator(prepared, operands, fmt, weights, kernels, runs_at_once(prepared, profile)) as emulator:
        budget = settings.budget.tightened(settings.share)
        whole = TrialRunner(emulator, trial_feeds(samples, VERIFYING_SETS), budget, settings.varying.unsteady)
        verifier = verifying_runner(prepared, whole)
        with step("repairing what half breaks") as report:
            runner = search_runner(prepared, whole, verifier, frozenset(operands), profile, samples.feeds)
            graph = Graph(prepared)
            repaired = repair(graph, runner, operands.keys(), ORDINARY * fmt.epsilon, deadline, report)
            emulator.hold(repaired.pinned.keys() - forced_nodes(prepared, settings.force_half, settings.keep_fp32))
        sizes = Sizes(profile, scale_to_rows(samples.feeds, settings.device.rows))
        search = Search(facts, constraints, repaired, sizes, settings, deadline, samples.feeds)
        planner = search.planner()
        repeating = repeating_runner(prepared, verifier, runner, profile, samples.feeds)
        repeated = Repeated(Screened(verifier, runner), verifier, repeating)
        with step("trying the cheapest plan"):
            assignment = cheapest_within(planner, runner, repeated)
        with step("measuring sensitivities of groups"):
            survey = survey_for(search, runner, verifier, assignment)
            planner.use_sensitivities(survey.result)
        if assignment is None:
            assignment = choose(search, survey, planner, repeated, step)
        with step("protecting close decisions"):
            while _pin_decisions(graph, verifier, assignment, repaired, planner):
                assignment = plan_within(planner, repeated)
        assignment, sensitivities = scaled_to_trial(planner, assignment, survey.result, verifier, repeated)
        story = Story(facts, constraints, repaired, assignment, sensitivities, _objections(facts, repaired, settings))
        return Planned(
            plan=replace(explain(story), kernels=kernels),
            profile=profile,
            predicted=_per_output(prepared, assignment, verifier),
            fp32_share=Fp32Share(_share_in_single(assignment, "flops"), _share_in_single(assignment, "elements")),
            first_divergence=repaired.first_divergence,
            trials=verifier.trials + (runner.trials if runner is not verifier else 0),
        )


def _pin_decisions(graph: Graph, runner: TrialRunner, found: Assignment, repaired: Repair, planner: Planner) -> bool:
    """Pin half nodes before decisions that an assignment could change; return True if any was pinned."""
    near = Repair()
    protect_decisions(graph, runner, found.half, near)
    repaired.pinned.update(near.pinned)
    repaired.cones |= near.cones
    return planner.pin(near.cones)


def _objections(facts: Measured, repaired: Repair, settings: PlanSettings) -> dict[str, str]:
    """Return the objection to each node that `--force-half` names, as text; empty if there is none."""
    forced = forced_nodes(facts.model, settings.force_half, settings.keep_fp32)
    against = {**constrain(facts), **repaired.pinned} if forced else {}
    return {name: objection(against[name]) if name in against else "" for name in forced}


def _numbers(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _per_output(model: ir.Model, assignment: Assignment, runner: TrialRunner) -> dict[str, float]:
    names = [value.name or "" for value in model.graph.outputs]
    return {name: share * runner.scale(name) for name, share in zip(names, assignment.predicted, strict=True)}


def _share_in_single(assignment: Assignment, what: str) -> float:
    total = sum(getattr(cost, what) for cost in assignment.costs.values())
    single = sum(getattr(cost, what) for name, cost in assignment.costs.items() if name not in assignment.half)
    return float(single / total) if total else 0.0
