"""The steps of a conversion: raise the opset, optimize, plan, lower, and verify under the emulator."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparison, compare
from demi.accuracy.token_agreement import TokenAgreement
from demi.calibration.emulation.widen import widen
from demi.calibration.observe import observe
from demi.calibration.profile import RangeProfile
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.errors import InputError, OverBudgetError
from demi.exporter.operators.schemas import half_dtype
from demi.exporter.passes.lower import Lowered, apply_plan
from demi.exporter.passes.optimize import optimize as optimized
from demi.exporter.passes.proof import same_within
from demi.exporter.passes.upgrade import check_measurable, upgrade
from demi.exporter.planning.find_plan import Planned, PlanSettings, find_plan
from demi.exporter.planning.judged_outputs import budget_for
from demi.exporter.planning.least_cost import LeastCost, least_cost
from demi.exporter.planning.trial_samples import trial_feeds
from demi.exporter.planning.uneven import Uneven, uneven_outputs
from demi.exporter.rescaling.rescale import Rescaling, rescale_prepared
from demi.exporter.stable_forms.choose import StableForm, with_stable_forms
from demi.float16 import BF16, half_format, to_half
from demi.generation.recorded import RecordedText
from demi.plan import PrecisionPlan, Reason, make_plan
from demi.progress import Step, silent
from demi.runtime.options import FAITHFUL
from demi.tensors import DType, Feeds, TensorSpec

logger = logging.getLogger(__name__)

OVER_BUDGET = "the half model would be over its budget with constants rescaled, and is within it without"
DEARER = "the cheapest plan would cost more with constants rescaled, new nodes and casts included"

REPLANS = 3
"""Most searches for a plan; a plan that fails on some samples is searched for again with those first."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A mixed model, its plan, and its accuracy on every sample."""

    lowered: Lowered
    planned: Planned
    comparison: Comparison
    measured: Sequence[Feeds] = ()
    """The mixed model's outputs under the emulator, one set for each of the samples."""
    budget: Budget = field(default_factory=Budget)
    """The budget asked for, completed with the model's detectors and choices."""
    uneven: Mapping[str, Uneven] = field(default_factory=dict)
    """The outputs whose error rests on a few rows of the samples, by name."""
    rescaling: Rescaling | None = None
    """The constants that were multiplied by powers of two before planning; None where that was not tried."""
    forms: tuple[StableForm, ...] = ()
    """The expressions that were rewritten into forms that do not overflow."""
    tokens: TokenAgreement | None = None
    """The tokens that half generates beside FP32's; None for a model that does not generate."""
    texts: tuple[RecordedText, ...] = ()
    """The texts on which they were compared."""


def raise_opset(
    prepared: ir.Model, samples: Samples, references: Sequence[Feeds], settings: PlanSettings, step: Step = silent
) -> ir.Model:
    """Return the model in an opset that has the half type and in which half can be measured, proven equivalent."""
    references = [settings.varying.comparable(each) for each in references]
    with step("raising the opset"):
        half = half_dtype(half_format(settings.precision))
        raised = upgrade(prepared, half, trial_feeds(samples), references)
    if settings.calibrate:
        check_measurable(raised)
    return raised


def ready_for_planning(
    raised: ir.Model,
    samples: Samples,
    references: Sequence[Feeds],
    settings: PlanSettings,
    optimize: bool = True,
    step: Step = silent,
) -> ir.Model:
    """Return the graph to plan on: optimized if wanted, and proven equivalent."""
    references = [settings.varying.comparable(each) for each in references]
    with step("optimizing the graph"):
        if not optimize:
            return raised
        return optimized(raised, trial_feeds(samples), references, same_within(settings.budget, references[0]))


@dataclass(frozen=True, slots=True)
class InRange:
    """A model of which more fits FP16."""

    rescaling: Rescaling
    forms: tuple[StableForm, ...] = ()

    @property
    def model(self) -> ir.Model:
        """The model to plan on."""
        return self.rescaling.model


def brought_into_range(ready: ir.Model, samples: Samples, settings: PlanSettings, step: Step = silent) -> InRange:
    """The model with constants multiplied by powers of two where its ranges leave FP16, proven to give the same bits.

    Only where the cheapest plan by the ranges costs no more with it, casts and new nodes included. Where nodes are left in
    FP32 for their range, stable forms of what they compute follow. The model itself where that is not wanted, brings
    nothing, or ranges are not measured.
    """
    fmt = half_format(settings.precision)
    if not (settings.rescale and settings.calibrate) or fmt is BF16:
        return InRange(Rescaling(ready))

    with step("observing ranges"):
        profile = observe(ready, samples)

    @functools.cache
    def least() -> LeastCost:
        return least_cost(ready, profile, settings)

    def rescale(model: ir.Model, ranges: RangeProfile) -> Rescaling:
        found = rescale_prepared(
            model, samples.feeds, ranges, keep_fp32=settings.keep_fp32, device=settings.device, floors=True
        )
        if not found or least_cost(found.model, found.profile or ranges, settings) <= least():
            return found
        return Rescaling(model, profile=ranges, why_not=DEARER, islands=found.islands | found.fits.keys())

    with step("rescaling what leaves half's range"):
        exact = rescale(ready, profile)
        return InRange(*with_stable_forms(ready, samples, exact, rescale)) if exact.islands else InRange(exact)


def convert_prepared(
    prepared: ir.Model,
    samples: Samples,
    references: Sequence[Feeds],
    settings: PlanSettings,
    plan: PrecisionPlan | None = None,
    step: Step = silent,
) -> Conversion:
    """Rescale, plan (unless `plan` is given), lower and verify a prepared model; `references` are its FP32 outputs.

    A found plan that fails on the full set of samples is searched for again with the failing samples first, and without
    the rescaling where none is within the budget with it. Raises OverBudgetError when none is within the budget at all.
    """
    settings = replace(settings, budget=budget_for(prepared, references, settings.budget))
    references = [settings.varying.comparable(each) for each in references]
    ranged = brought_into_range(prepared, samples, settings, step)
    if plan is not None:
        check_plan(ranged.model, plan, settings.precision)
    found = _within(ranged, samples, references, settings, plan, step)
    if not found.comparison and plan is None and ranged.model is not prepared:
        logger.info("over the budget with constants rescaled: planned again without")
        as_it_was = InRange(Rescaling(prepared, why_not=OVER_BUDGET))
        again = _within(as_it_was, samples, references, settings, plan, step)
        found = again if again.comparison else found
    require_within_budget(found.comparison, found.planned, settings, plan_given=plan is not None)
    return replace(found, uneven=uneven_outputs(references, found.measured))


def _within(
    ranged: InRange,
    samples: Samples,
    references: Sequence[Feeds],
    settings: PlanSettings,
    plan: PrecisionPlan | None,
    step: Step,
) -> Conversion:
    """Plan, lower and measure a model that was brought into range; a few times, where a found plan is over the budget."""
    order = list(range(len(samples)))
    for attempt in range(REPLANS):
        ordered = replace(samples, feeds=tuple(samples.feeds[i] for i in order))
        planned = Planned(plan) if plan is not None else plan_in_range(ranged, ordered, settings, step)
        with step(f"converting to mixed {settings.precision}"):
            lowered = apply_plan(ranged.model, planned.plan, half_io=settings.half_io, half_names=settings.half_names)
        with step("verifying under the half-precision emulator"):
            measured = emulate(lowered.model, samples, planned.plan.kernels)
        comparison = compare(references, measured, settings.budget)
        if comparison or plan is not None or not settings.calibrate or attempt == REPLANS - 1:
            break
        order = _worst_first(references, measured, settings.budget)
    return Conversion(
        lowered, planned, comparison, measured, settings.budget, rescaling=ranged.rescaling, forms=ranged.forms
    )


def plan_in_range(ranged: InRange, samples: Samples, settings: PlanSettings, step: Step = silent) -> Planned:
    """The plan of a model that was brought into range, or left as it was; it says which nodes fit since."""
    planned = find_plan(ranged.model, samples, settings, step, ranged.rescaling.profile)
    why = {name: (Reason.STABLE_FORM, str(form)) for form in ranged.forms for name in form.nodes}
    why |= {name: (Reason.RESCALED, words) for name, words in ranged.rescaling.fits.items()}
    return replace(planned, plan=_with_reasons(planned.plan, why)) if why else planned


def _with_reasons(plan: PrecisionPlan, why: Mapping[str, tuple[Reason, str]]) -> PrecisionPlan:
    """The plan, with the reason of each half node that would be FP32 for its range if nothing had been changed."""
    decisions = (
        replace(each, reason=why[each.node][0], evidence=why[each.node][1])
        if each.is_half and each.reason is Reason.SAFE and each.node in why
        else each
        for each in plan.decisions.values()
    )
    return make_plan(plan.precision, decisions, plan.masks, plan.kernels, plan.epsilons)


def check_plan(prepared: ir.Model, plan: PrecisionPlan, precision: str) -> None:
    """Raise InputError when a given plan is for another format, or for a model with other nodes."""
    if plan.precision != precision:
        raise InputError(
            f"the plan is for {plan.precision}, but {precision} was requested",
            hint=f"add --{plan.precision}, or find a plan for {precision}",
        )
    known = {node.name for node in prepared.graph.all_nodes()}
    if unknown := [name for name in plan.decisions if name not in known]:
        raise InputError(
            f"the plan names `{unknown[0]}`, which the model does not have",
            hint="node names differ between models: make the plan with `demi calibrate` from this model",
        )


def emulate(mixed: ir.Model, samples: Samples, kernels: Mapping[str, str] | None = None) -> list[Feeds]:
    """Return the outputs of a mixed model under the emulator, for each set of samples; `kernels` are those of its plan."""
    with session_for(widen(mixed, fused=kernels), settings=FAITHFUL) as session:
        return [session.run(cast_feeds(session.inputs, feeds)) for feeds in samples.feeds]


def cast_feeds(specs: Sequence[TensorSpec], feeds: Feeds) -> Feeds:
    """Cast feeds to the input types of a model, which may be half where the samples are FP32; BF16 as its bits."""
    return {
        spec.name: to_half(feeds[spec.name], BF16)
        if spec.dtype is DType.BF16 and feeds[spec.name].dtype.kind == "f"
        else feeds[spec.name].astype(spec.dtype.numpy, copy=False)
        for spec in specs
    }


def _worst_first(references: Sequence[Feeds], measured: Sequence[Feeds], budget: Budget) -> list[int]:
    """Return the positions of the samples, those with the largest error first."""

    def error(index: int) -> float:
        outputs = compare(references[index : index + 1], measured[index : index + 1], budget).outputs
        return max(
            max(diff.relative_l2, diff.boxes or 0.0, 1 - (1.0 if diff.agree is None else diff.agree))
            for diff in outputs
        )

    return sorted(range(len(references)), key=lambda index: -error(index))


def require_within_budget(
    comparison: Comparison, planned: Planned, settings: PlanSettings, *, plan_given: bool = False
) -> None:
    """Raise OverBudgetError, naming every output and limit and where the error begins, unless the comparison passed."""
    if comparison:
        return
    plan = planned.plan
    lines = ["the half-precision model is not within its accuracy budget:", *comparison.failures()]
    if planned.first_divergence:
        lines.append(planned.first_divergence)
    raise OverBudgetError(
        "\n  ".join(lines),
        where=f"{plan.half_nodes} of {len(plan.computing)} float nodes in {plan.precision}; nothing was written",
        hint=_way_out(comparison, settings, plan_given),
    )


def _way_out(comparison: Comparison, settings: PlanSettings, plan_given: bool) -> str:
    """Return a hint: the option that is most likely to help."""
    if settings.half_io and comparison.worst.non_finite:
        return "leave --half-io out: an input or output in half cannot hold what FP32 can"
    if plan_given:
        return "mark more nodes `single` in the plan, let one be found without --plan, or raise --budget"
    if not settings.calibrate:
        return "leave --no-calibrate out: a measured plan keeps in FP32 what half breaks; or name it with --keep-fp32"
    if settings.force_half:
        return "force less to half, keep more nodes in FP32 with --keep-fp32, or raise --budget"
    return "keep more nodes in FP32 with --keep-fp32 (names, globs, operator types), or raise --budget"
