"""Finding the precision plan of a prepared model: observe, constrain, repair, measure, solve, verify."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import onnx_ir as ir

from demi.accuracy.budget import Budget
from demi.accuracy.varying import STEADY, Varying
from demi.calibration.deadline import Deadline
from demi.calibration.emulation.sensitivity import Sensitivities, Survey
from demi.calibration.emulation.switchable import Emulator, input_source
from demi.calibration.emulation.trials import Judge
from demi.calibration.observe import observe
from demi.calibration.profile import RangeProfile
from demi.calibration.samples import Samples
from demi.exporter.operators import schemas
from demi.exporter.operators.mask_constants import saturate
from demi.exporter.operators.schemas import Operands
from demi.exporter.planning.constraints import Pins, constrain
from demi.exporter.planning.costs import DeviceCosts, Sizes
from demi.exporter.planning.decision_margins import protect_decisions
from demi.exporter.planning.measured_facts import Measured, measured_facts
from demi.exporter.planning.node_patterns import check_controls, forced_nodes
from demi.exporter.planning.op_list import objection, op_list_plan
from demi.exporter.planning.planner import AIM, Assignment, Planner, plan_within, source_of
from demi.exporter.planning.reasons import Story, explain
from demi.exporter.planning.repair import repair
from demi.exporter.planning.repair_state import Graph, Repair
from demi.exporter.planning.trial_samples import (
    SEARCH_ELEMENTS,
    scale_to_rows,
    search_judge,
    trial_elements,
    trial_feeds,
    verifying_judge,
)
from demi.float16 import half_format
from demi.plan import PrecisionPlan
from demi.progress import Report, Step, silent
from demi.tensors import Array, Feeds

NEGLIGIBLE = 0.02
"""The share of what half could save that is not worth more measuring."""

WORK = 96 * SEARCH_ELEMENTS
"""Elements that all these runs may compute: a few seconds on two cores."""

REFINED_TOGETHER = 12
"""Trials between two looks at what finer sensitivities have changed."""

ORDINARY = 2.0
"""Relative error, in units of half's epsilon, that is no sign of anything broken: four times what one rounding can make."""


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """How a plan is found."""

    precision: str = "fp16"
    budget: Budget = field(default_factory=Budget)
    calibrate: bool = True
    """Measure and solve; without it, the op-level keep list decides."""
    keep_fp32: tuple[str, ...] = ()
    force_half: tuple[str, ...] = ()
    search_seconds: float = 60.0
    trials: int = 192
    """Most emulated runs to spend on splitting groups of nodes; fewer where one takes long (`WORK`)."""
    device: DeviceCosts = field(default_factory=DeviceCosts)
    half_io: bool = False
    varying: Varying = STEADY
    """The outputs that FP32 itself answers with other values each time."""


@dataclass(frozen=True, slots=True)
class Fp32Share:
    """How much of a model's work its plan leaves in FP32."""

    flops: float
    tensor_bytes: float


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and what stands behind it."""

    plan: PrecisionPlan
    profile: RangeProfile = field(default_factory=RangeProfile)
    predicted: Mapping[str, float] = field(default_factory=dict)
    """Predicted relative L2 of each output."""
    fp32_share: Fp32Share | None = None
    """What stays in FP32; None where no sizes were observed, as for a plan that was given."""
    first_divergence: str | None = None
    """Where the first non-finite value or large error would arise if everything the rules allow were half."""
    trials: int = 0


def find_plan(prepared: ir.Model, samples: Samples, settings: PlanSettings, step: Step = silent) -> Planned:
    """The precision plan of a prepared model: measured and solved, or from the op list with `calibrate=False`.

    Raises InputError for a pattern that fits no node or contradicts another, and ConversionError when a node that is
    forced to half cannot be. Whether the plan is within the budget on all samples is for the caller to verify on the
    converted model.
    """
    fmt = half_format(settings.precision)
    check_controls(prepared, settings.keep_fp32, settings.force_half)
    if not settings.calibrate:
        return Planned(op_list_plan(prepared, fmt, settings.keep_fp32, settings.force_half))
    with step("observing ranges"):
        profile = observe(prepared, samples)
    facts = measured_facts(prepared, fmt, profile, settings.keep_fp32)
    constraints = constrain(facts, settings.force_half)
    operands = {name: found for name, found in facts.operands.items() if found and name not in constraints}
    masks = {value.name or "": saturate(_numbers(value), fmt) for value in facts.masks.constants}
    deadline = Deadline(settings.search_seconds)
    with Emulator(prepared, operands, fmt, masks) as emulator:
        whole = Judge(emulator, trial_feeds(samples), settings.budget, settings.varying.unsteady)
        verifier = verifying_judge(prepared, whole)
        with step("repairing what half breaks") as report:
            judge = search_judge(prepared, whole, verifier, frozenset(operands), profile, samples.feeds)
            graph = Graph(prepared)
            repaired = repair(graph, judge, operands.keys(), ORDINARY * fmt.epsilon, deadline, report)
            emulator.hold(repaired.pinned.keys() - _forced(prepared, settings))
        sizes = Sizes(profile, scale_to_rows(samples.feeds, settings.device.rows))
        search = _Search(facts, constraints, repaired, sizes, settings, deadline, samples.feeds)
        survey, planner = _measure(search, judge, step)
        assignment = _choose(search, survey, planner, (judge, verifier), step)
        with step("protecting close decisions"):
            while _pin_decisions(graph, verifier, assignment, repaired, planner):
                assignment = plan_within(planner, verifier)
        assignment, sensitivities = _as_seen(planner, assignment, survey.result, verifier)
        story = Story(facts, constraints, repaired, assignment, sensitivities, _objections(facts, repaired, settings))
        return Planned(
            plan=explain(story),
            profile=profile,
            predicted=_per_output(prepared, assignment, verifier),
            fp32_share=Fp32Share(_share_in_single(assignment, "flops"), _share_in_single(assignment, "elements")),
            first_divergence=repaired.first_divergence,
            trials=verifier.trials + (judge.trials if judge is not verifier else 0),
        )


@dataclass(frozen=True, slots=True)
class _Search:
    """What the cut is built from."""

    facts: Measured
    constraints: Pins
    repaired: Repair
    sizes: Sizes
    settings: PlanSettings
    deadline: Deadline
    sets: Sequence[Feeds]


def _measure(search: _Search, judge: Judge, step: Step) -> tuple[Survey, Planner]:
    """Sensitivities as fine as the choice needs, and the cut problem with them.

    Nodes that repair pinned for their error are weighed as well, apart from the others, whose errors one overflow would
    hide: the cut takes back those that turn out to be harmless. So are the nodes that read what a constrained node makes:
    their error is in what they read.
    """
    model, operands, settings = search.facts.model, search.facts.operands, search.settings
    forced = _forced(model, settings)
    pinned = search.constraints.keys() | (search.repaired.cones - forced)
    apart = search.repaired.pinned.keys() | _read_from(model, operands, pinned)
    allowed = [name for name, found in operands.items() if found and name not in pinned]
    suspects = [name for name in allowed if name in apart]
    others = [name for name in allowed if name not in apart]
    sources = [input_source(value.name or "") for value in model.graph.inputs if schemas.is_float(value)]
    with step("measuring sensitivities of groups"):
        survey = Survey(judge, [*sources, *others], suspects, search.deadline)
        planner = Planner(
            model, operands, search.sizes, settings.device, survey.result, pinned, forced, settings.half_io
        )
    return survey, planner


def _read_from(model: ir.Model, operands: Mapping[str, Operands], single: AbstractSet[str]) -> set[str]:
    """The nodes that would read in half what these nodes make, exact operators between them aside."""
    found = set()
    for node in model.graph.all_nodes():
        positions = operands[node.name or ""].inputs if node.name in operands else frozenset()
        read = [value for i, value in enumerate(node.inputs) if i in positions and value is not None]
        if any(value.producer() is not None and source_of(value) in single for value in read):
            found.add(node.name or "")
    return found


def _choose(search: _Search, survey: Survey, planner: Planner, judges: tuple[Judge, Judge], step: Step) -> Assignment:
    """The cheapest verified assignment, with sensitivities as fine as the choice needs.

    Where the first one forgoes more than `NEGLIGIBLE` of what half could save, groups are split and it is sought again.
    `judges` are that of the many trials and the one that verifies.
    """
    trying, verifying = judges
    with step("solving for the cheapest plan"):
        found = plan_within(planner, verifying)
    if found.forgone <= NEGLIGIBLE:
        return found
    with step("measuring sensitivities one by one") as report:
        work = trial_elements(search.facts.model, trying, search.facts.profile, search.sets)
        _refine(survey, planner, found, min(search.settings.trials, int(WORK / max(work, 1))), report)
    with step("solving for the cheapest plan"):
        better = plan_within(planner, verifying)
    return better if better.forgone <= found.forgone else found


def _refine(survey: Survey, planner: Planner, found: Assignment, trials: int, report: Report | None) -> None:
    """Split the groups whose nodes could save most, a few at a time, until what they hold is negligible."""
    target = max(found.predicted, default=AIM) or AIM
    for done in range(0, trials, REFINED_TOGETHER):
        if report is not None:
            report(done / trials)
        if not survey.refine(REFINED_TOGETHER, planner.worth(found), NEGLIGIBLE / 4):
            break
        planner.learn(survey.result)
        found = planner.assign(target)
        if found.forgone <= NEGLIGIBLE:
            break


def _as_seen(
    planner: Planner, found: Assignment, known: Sensitivities, judge: Judge
) -> tuple[Assignment, Sensitivities]:
    """An assignment and the sensitivities, scaled to what its emulated run shows."""
    comparison = judge.compare(found.half)
    seen = [diff.relative_l2 / judge.scale(diff.output) for diff in comparison.outputs]
    planner.learn(known)
    predicted = planner.predicted_again(found).predicted
    factors = [
        (have / expected) ** 2 if expected > 0 and math.isfinite(have / expected) and have > 0 else 1.0
        for have, expected in zip(seen, predicted, strict=True)
    ]
    scaled = known.scaled(factors)
    planner.learn(scaled)
    return planner.predicted_again(found), scaled


def _pin_decisions(graph: Graph, judge: Judge, found: Assignment, repaired: Repair, planner: Planner) -> bool:
    """Pin what an assignment has half before a decision that it could change; whether there was anything."""
    near = Repair()
    protect_decisions(graph, judge, found.half, near)
    repaired.pinned.update(near.pinned)
    repaired.cones |= near.cones
    return planner.pin(near.cones)


def _objections(facts: Measured, repaired: Repair, settings: PlanSettings) -> dict[str, str]:
    """What speaks against each node that `--force-half` names, in words; an empty text where nothing does."""
    forced = _forced(facts.model, settings)
    against = {**constrain(facts), **repaired.pinned} if forced else {}
    return {name: objection(against[name]) if name in against else "" for name in forced}


def _forced(model: ir.Model, settings: PlanSettings) -> frozenset[str]:
    return forced_nodes(model, settings.force_half, settings.keep_fp32)


def _numbers(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _per_output(model: ir.Model, assignment: Assignment, judge: Judge) -> dict[str, float]:
    names = [value.name or "" for value in model.graph.outputs]
    return {name: share * judge.scale(name) for name, share in zip(names, assignment.predicted, strict=True)}


def _share_in_single(assignment: Assignment, what: str) -> float:
    total = sum(getattr(cost, what) for cost in assignment.costs.values())
    single = sum(getattr(cost, what) for name, cost in assignment.costs.items() if name not in assignment.half)
    return float(single / total) if total else 0.0
