"""Finding the precision plan of a prepared model: observe, constrain, repair, measure, solve, verify."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import onnx_ir as ir

from calibration.judge import Judge
from calibration.observe import observe
from calibration.profile import RangeProfile
from calibration.samples import Samples
from calibration.sensitivity import Report, Survey
from calibration.switchable import Emulator, input_source
from demi.budget import Budget
from demi.float16 import half_format
from demi.plan import PrecisionPlan
from demi.tensors import Array, Feeds
from exporter import schemas
from exporter.constraints import Pins, constrain
from exporter.costs import DeviceCosts, Sizes
from exporter.explain import Story, explain
from exporter.facts import Measured, measured_facts
from exporter.masks import saturate
from exporter.oplist import objection, op_list_plan
from exporter.patterns import check_controls, forced_nodes
from exporter.planner import AIM, Assignment, Planner, plan_within
from exporter.repair import Graph, Repair, protect_decisions, prune, repair

Step = Callable[[str], AbstractContextManager[Report | None]]
"""Shows that a named phase runs; what it gives is told the share that is done."""

TRIAL_ELEMENTS = 1 << 22
"""Input elements that one trial may run over: trials use the first sets of samples, verification uses all."""
TRIAL_SETS = 4

ORDINARY = 2.0
"""Relative error, in units of half's epsilon, that is no sign of anything broken: four times what one rounding can make."""


def silent(_: str) -> AbstractContextManager[Report | None]:
    """A Step that shows nothing."""
    return nullcontext()


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
    device: DeviceCosts = field(default_factory=DeviceCosts)
    half_io: bool = False


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
    with Emulator(prepared, operands, fmt, masks) as emulator:
        judge = Judge(emulator, trial_feeds(samples), settings.budget)
        with step("repairing what half breaks"):
            graph = Graph(prepared)
            repaired = repair(graph, judge, operands.keys(), ORDINARY * fmt.epsilon)
            prune(judge, operands.keys(), repaired)
            protect_decisions(graph, judge, operands.keys(), repaired)  # what was given back may bring one near again
            emulator.hold(repaired.pinned.keys() - _forced(prepared, settings))
        sizes = Sizes(profile, scale_to_rows(samples, settings.device.rows))
        survey, assignment = _choose(facts, constraints, repaired, sizes, judge, settings, step)
        story = Story(facts, constraints, repaired, assignment, survey.result, _objections(facts, repaired, settings))
        return Planned(
            plan=explain(story),
            profile=profile,
            predicted=_per_output(prepared, assignment, judge),
            fp32_share=Fp32Share(_share_in_single(assignment, "flops"), _share_in_single(assignment, "elements")),
            first_divergence=repaired.first_divergence,
            trials=judge.trials,
        )


def _choose(
    facts: Measured, constraints: Pins, repaired: Repair, sizes: Sizes, judge: Judge, settings: PlanSettings, step: Step
) -> tuple[Survey, Assignment]:
    """The cheapest verified assignment, with sensitivities measured as finely as the choice needs."""
    model = facts.model
    forced = _forced(model, settings)
    pinned = constraints.keys() | (repaired.pinned.keys() - forced)
    # What was pinned tells nothing about what is free: one overflow would hide the other nodes of its group.
    allowed = [name for name, found in facts.operands.items() if found and name not in pinned]
    sources = [input_source(value.name or "") for value in model.graph.inputs if schemas.is_float(value)]

    def planner() -> Planner:
        return Planner(model, facts.operands, sizes, settings.device, survey.result, pinned, forced, settings.half_io)

    with step("measuring sensitivities of groups"):
        survey = Survey(judge, [*sources, *allowed])
        assignment = planner().assign(AIM)
    if assignment.half != assignment.cheapest:
        with step("measuring sensitivities one by one") as report:
            survey.refine(settings.trials, settings.search_seconds, report=report)
    with step("solving for the cheapest plan"):
        return survey, plan_within(planner(), judge)


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


def trial_feeds(samples: Samples) -> list[Feeds]:
    """The sets of samples that trials run on: the first few, within `TRIAL_ELEMENTS`."""
    chosen: list[Feeds] = []
    elements = 0
    for feeds in samples.feeds[:TRIAL_SETS]:
        elements += sum(array.size for array in feeds.values())
        if chosen and elements > TRIAL_ELEMENTS:
            break
        chosen.append(feeds)
    return chosen


def scale_to_rows(samples: Samples, rows: int) -> float:
    """How many times the largest set of samples goes into `rows` rows (1 when its first axis is no batch)."""
    sizes = [{array.shape[0] for array in feeds.values() if array.ndim} for feeds in samples.feeds]
    largest = max((size.pop() for size in sizes if len(size) == 1), default=rows)
    return max(1.0, rows / max(largest, 1))


def _per_output(model: ir.Model, assignment: Assignment, judge: Judge) -> dict[str, float]:
    names = [value.name or "" for value in model.graph.outputs]
    return {name: share * judge.scale(name) for name, share in zip(names, assignment.predicted, strict=True)}


def _share_in_single(assignment: Assignment, what: str) -> float:
    total = sum(getattr(cost, what) for cost in assignment.costs.values())
    single = sum(getattr(cost, what) for name, cost in assignment.costs.items() if name not in assignment.half)
    return float(single / total) if total else 0.0
