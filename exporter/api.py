"""The Python API: an ONNX model in, a mixed half-precision model out, with its plan and its measured accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir

from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparison, compare
from demi.accuracy.varying import Varying, varying
from demi.arguments import require
from demi.bundles.drafts import draft_beside
from demi.calibration.emulation.widen import widen
from demi.calibration.observe import FAITHFUL
from demi.calibration.random_draws import random_nodes
from demi.calibration.samples import Samples, draw_samples, fit_samples
from demi.calibration.sessions import save_model, session_for
from demi.errors import BundleError, ConversionError, InputError, OverBudgetError
from demi.exporter.arguments import (
    patterns,
    require_function,
    require_number,
    require_switches,
    sample_sets,
)
from demi.exporter.operators.schemas import half_dtype
from demi.exporter.passes.containers import expose_tensors, read_proto, require_tensors
from demi.exporter.passes.declared import correct_shapes
from demi.exporter.passes.lower import Lowered, apply_plan
from demi.exporter.passes.optimize import optimize as optimized
from demi.exporter.passes.prepare import prepare
from demi.exporter.passes.schema_types import SchemaTypes
from demi.exporter.passes.types import fill_types
from demi.exporter.passes.upgrade import check_measurable, upgrade
from demi.exporter.passes.widen import widen_source
from demi.exporter.planning.find_plan import Planned, PlanSettings, Step, find_plan, silent
from demi.exporter.planning.judged_outputs import budget_for
from demi.exporter.planning.node_patterns import check_controls
from demi.exporter.planning.op_list import op_list_plan
from demi.exporter.planning.trial_samples import trial_feeds
from demi.exporter.sources.index_limits import index_limits
from demi.exporter.sources.onnx_file import read_onnx, require_known_operators
from demi.float16 import BF16, half_format, to_half
from demi.plan import PrecisionPlan
from demi.runtime.onnxruntime.first_open import open_tried
from demi.tensors import DType, Feeds, TensorSpec

REPLANS = 3
"""How often a plan that fails on the full set of samples is sought again, with those it failed on first."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A mixed model, the plan behind it, and what it costs in accuracy on every sample."""

    lowered: Lowered
    planned: Planned
    comparison: Comparison
    budget: Budget = field(default_factory=Budget)
    """What it was held to: the budget asked for, with the model's detectors and choices in it."""


@dataclass(frozen=True, slots=True)
class Converted:
    """The result of `convert`."""

    model: onnx.ModelProto
    plan: PrecisionPlan
    comparison: Comparison | None
    """The measured accuracy; None when nothing was run (`verify=False`)."""
    planned: Planned
    casts: int


def convert(
    model: onnx.ModelProto,
    samples: Sequence[Feeds] | None = None,
    *,
    precision: str = "fp16",
    budget: Budget | None = None,
    keep_io_types: bool = True,
    keep_fp32: str | Sequence[str] = (),
    force_half: str | Sequence[str] = (),
    plan: PrecisionPlan | None = None,
    calibrate: bool = True,
    verify: bool = True,
    optimize: bool = True,
    search_seconds: float = 60.0,
    seed: int = 0,
    step: Step = silent,
) -> Converted:
    """Convert an FP32 ONNX model to mixed half precision within an accuracy budget.

    `samples` is a sequence of {input name: array}; without it inputs are drawn from the specs with `seed`, and the
    ranges are guesses. `precision` is fp16 or bf16. With `keep_io_types` the public types stay; else float inputs and
    outputs become half. `plan` is carried out as it is. With `verify=False` nothing is run: the plan given, or the operator
    lists, decide, and nothing is known of the accuracy; for models that ONNX Runtime cannot run, or whose inputs are no
    tensors. Where the model is run, half weights that it came with are planned anew from FP32, and sequences, optionals and maps at
    its border become the tensors in them. With `optimize`, constants are folded and normalizations fused first; a plan names the nodes of the optimized
    model. The model that is given is not changed.

    Raises ConversionError for a model that cannot be converted, SampleError for samples that do not fit, InputError for
    an argument of another kind and for a plan of another model or format, and OverBudgetError, which names the outputs, when the result is not within the
    budget.
    """
    require(model, onnx.ModelProto, "model", "an onnx.ModelProto; files are for `convert_file`")
    require(precision, str, "precision", "fp16 or bf16")
    require(budget, (Budget, type(None)), "budget", "a demi.accuracy.budget.Budget")
    require(plan, (PrecisionPlan, type(None)), "plan", "a PrecisionPlan; `demi.plan.read_plan` reads one")
    require_switches(keep_io_types=keep_io_types, calibrate=calibrate, verify=verify, optimize=optimize)
    require_number(search_seconds, "search_seconds", 0.0)
    require_number(seed, "seed", 0, whole=True)
    require_function(step, "step", "a function of a name that gives a context manager")
    half_format(precision)
    sets = sample_sets(samples)
    given = read_proto(model).model
    prepared = prepare(widen_source(_with_tensors(given, sets)).model if verify else given)
    settings = PlanSettings(
        precision=precision,
        budget=budget or Budget(),
        calibrate=calibrate,
        keep_fp32=patterns(keep_fp32, "keep_fp32"),
        force_half=patterns(force_half, "force_half"),
        search_seconds=search_seconds,
        half_io=not keep_io_types,
    )
    if not verify:
        SchemaTypes()(prepared)
        if plan is not None:
            check_plan(prepared, plan, precision)
        check_controls(prepared, settings.keep_fp32, settings.force_half)
        chosen = plan or op_list_plan(prepared, half_format(precision), settings.keep_fp32, settings.force_half)
        lowered = apply_plan(prepared, chosen, half_io=settings.half_io)
        return Converted(ir.to_proto(lowered.model), chosen, None, Planned(chosen), lowered.casts)
    require_known_operators(prepared, hint="convert it without running: convert(model, verify=False)")
    fill_types(prepared)
    opener = partial(open_tried, feeds=sets[0] if sets else None)
    with session_for(prepared, settings=FAITHFUL, opener=opener) as session:
        if sets:
            fitted = fit_samples(sets, session.inputs, "the samples given")
        else:
            fitted = draw_samples(session.inputs, seed, index_limits=index_limits(prepared))
        references = [session.run(feeds) for feeds in fitted.feeds]
        again = session.run(fitted.feeds[0])
    settings = replace(settings, varying=find_varying(prepared, fitted.feeds[0], (references[0], again)))
    correct_shapes(prepared, references)
    raised = raise_opset(prepared, fitted, references, settings, step)
    prepared = ready_for_planning(raised, fitted, references, settings, optimize, step)
    done = convert_prepared(prepared, fitted, references, settings, plan, step)
    return Converted(
        ir.to_proto(done.lowered.model), done.planned.plan, done.comparison, done.planned, done.lowered.casts
    )


def _with_tensors(model: ir.Model, sets: Sequence[Feeds]) -> ir.Model:
    """The model with tensors at its border, so that it can be run and measured."""
    exposed = expose_tensors(model, sets[0] if sets else None).model
    require_tensors(exposed)
    return exposed


def find_varying(prepared: ir.Model, feeds: Feeds, fixed: tuple[Feeds, Feeds]) -> Varying:
    """The outputs that differ from run to run, as they are and in `fixed`, two runs with the same random numbers.

    Raises ConversionError when nothing is left to compare.
    """
    live = fixed
    if random_nodes(prepared):
        with session_for(prepared, opener=open_tried) as session:
            live = (session.run(feeds), session.run(feeds))
    found = varying(live, fixed)
    if fixed[0] and not found.judged(fixed[0]):
        raise ConversionError(
            "every output differs from run to run in FP32 itself, so nothing says what half does to them",
            hint="give the model its random numbers as an input, or convert it without measuring (exporter.convert, verify=False)",
        )
    return found


def raise_opset(
    prepared: ir.Model, samples: Samples, references: Sequence[Feeds], settings: PlanSettings, step: Step = silent
) -> ir.Model:
    """The model in an opset that has the half type and in which half can be measured, proven to compute the same."""
    references = [settings.varying.judged(each) for each in references]
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
    """The graph to plan on: optimized if wanted, and proven to compute the same."""
    references = [settings.varying.judged(each) for each in references]
    with step("optimizing the graph"):
        return optimized(raised, trial_feeds(samples), references) if optimize else raised


def convert_file(
    source: str | Path,
    target: str | Path,
    *,
    precision: str = "fp16",
    plan: PrecisionPlan | None = None,
    keep_io_types: bool = True,
) -> PrecisionPlan:
    """Convert an ONNX file of any size to another, weight by weight, without running it; returns the plan carried out.

    The plan given decides, else the operator lists. Weights in other files are streamed: beside the graph, about the
    largest weight is in memory. Weights beyond 2 GiB go to `TARGET.data`. The files appear whole or not at all. Raises
    SourceError, ConversionError and InputError as `convert` does, and BundleError when the target cannot be written.
    """
    for name, path in (("source", source), ("target", target)):
        require(path, (str, Path), name, "the path of an .onnx file")
    require(plan, (PrecisionPlan, type(None)), "plan", "a PrecisionPlan; `demi.plan.read_plan` reads one")
    require_switches(keep_io_types=keep_io_types)
    source, target = Path(source), Path(target)
    if target.exists() and not target.is_file():  # a folder, or a device that a file would take the place of
        raise BundleError("the target is there, and is no file", where=str(target), hint="name a file of its own")
    prepared = prepare(read_onnx(source))
    SchemaTypes()(prepared)
    chosen = plan or op_list_plan(prepared, half_format(precision))
    lowered = apply_plan(prepared, chosen, half_io=not keep_io_types)
    try:
        with draft_beside(target) as draft:
            save_model(lowered.model, draft / target.name)
            # The graph goes last: until it is there, its weights mean nothing.
            for name in sorted((path.name for path in draft.iterdir()), key=lambda name: name == target.name):
                (draft / name).replace(target.parent / name)
    except OSError as error:
        raise BundleError(
            f"the model cannot be written: {error.strerror or error}",
            where=str(target),
            hint="check that its folder exists, free space and permissions",
        ) from error
    return chosen


def convert_prepared(
    prepared: ir.Model,
    samples: Samples,
    references: Sequence[Feeds],
    settings: PlanSettings,
    plan: PrecisionPlan | None = None,
    step: Step = silent,
) -> Conversion:
    """Plan (unless `plan` is given), lower and verify a prepared model; `references` are its FP32 outputs.

    A found plan that fails on the full set of samples is sought again with those samples first. Raises OverBudgetError
    when none is within the budget.
    """
    settings = replace(settings, budget=budget_for(prepared, references, settings.budget))
    if plan is not None:
        check_plan(prepared, plan, settings.precision)
    references = [settings.varying.judged(each) for each in references]
    order = list(range(len(samples)))
    for attempt in range(REPLANS):
        ordered = replace(samples, feeds=tuple(samples.feeds[i] for i in order))
        planned = Planned(plan) if plan is not None else find_plan(prepared, ordered, settings, step)
        with step(f"converting to mixed {settings.precision}"):
            lowered = apply_plan(prepared, planned.plan, half_io=settings.half_io)
        with step("verifying under the half-precision emulator"):
            measured = emulate(lowered.model, samples)
        comparison = compare(references, measured, settings.budget)
        if comparison or plan is not None or not settings.calibrate or attempt == REPLANS - 1:
            break
        order = _worst_first(references, measured, settings.budget)
    require_within_budget(comparison, planned, settings, plan_given=plan is not None)
    return Conversion(lowered, planned, comparison, settings.budget)


def check_plan(prepared: ir.Model, plan: PrecisionPlan, precision: str) -> None:
    """Raise InputError when a plan that was given is for another format, or for a model with other nodes."""
    if plan.precision != precision:
        raise InputError(
            f"the plan is for {plan.precision}, but {precision} was asked for",
            hint=f"add --{plan.precision}, or find a plan for {precision}",
        )
    known = {node.name for node in prepared.graph.all_nodes()}
    if unknown := [name for name in plan.decisions if name not in known]:
        raise InputError(
            f"the plan names `{unknown[0]}`, which the model does not have",
            hint="node names differ between models: make the plan with `demi calibrate` from this model",
        )


def emulate(mixed: ir.Model, samples: Samples) -> list[Feeds]:
    """The outputs of a mixed model with every half rounding made explicit, for each set of samples."""
    with session_for(widen(mixed), settings=FAITHFUL) as session:
        return [session.run(as_taken(session.inputs, feeds)) for feeds in samples.feeds]


def as_taken(specs: Sequence[TensorSpec], feeds: Feeds) -> Feeds:
    """The feeds in the types that a model takes, which may be half where the samples are FP32; BF16 as its bits."""
    return {
        spec.name: to_half(feeds[spec.name], BF16)
        if spec.dtype is DType.BF16 and feeds[spec.name].dtype.kind == "f"
        else feeds[spec.name].astype(spec.dtype.numpy, copy=False)
        for spec in specs
    }


def _worst_first(references: Sequence[Feeds], measured: Sequence[Feeds], budget: Budget) -> list[int]:
    """The positions of the samples, those with the largest error first."""

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
    """What may help, of what the user can turn."""
    if settings.half_io and comparison.worst.non_finite:
        return "leave --half-io out: an input or output in half cannot hold what FP32 can"
    if plan_given:
        return "mark more nodes `single` in the plan, let one be found without --plan, or raise --budget"
    if not settings.calibrate:
        return "leave --no-calibrate out: a measured plan keeps in FP32 what half breaks; or name it with --keep-fp32"
    if settings.force_half:
        return "force less to half, keep more nodes in FP32 with --keep-fp32, or raise --budget"
    return "keep more nodes in FP32 with --keep-fp32 (names, globs, operator types), or raise --budget"
