"""The Python API of the exporter: `convert` for models in memory, `convert_file` for files of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparison
from demi.arguments import require
from demi.calibration.samples import Samples, draw_samples, fit_samples
from demi.exporter.arguments import (
    patterns,
    require_function,
    require_number,
    require_switches,
    sample_sets,
)
from demi.exporter.conversion import (
    check_plan,
    convert_prepared,
    raise_opset,
    ready_for_planning,
)
from demi.exporter.passes.containers import expose_tensors, read_proto, require_tensors
from demi.exporter.passes.declared_shapes import correct_shapes
from demi.exporter.passes.fill_types import fill_types
from demi.exporter.passes.lower import apply_plan
from demi.exporter.passes.prepare import prepare
from demi.exporter.passes.schema_types import SchemaTypes
from demi.exporter.passes.widen import widen_source
from demi.exporter.planning.find_plan import Planned, PlanSettings
from demi.exporter.planning.node_patterns import check_controls
from demi.exporter.planning.op_list import op_list_plan
from demi.exporter.reference import run_reference
from demi.exporter.sources.index_limits import index_limits
from demi.exporter.sources.onnx_file import read_onnx, require_known_operators
from demi.exporter.stable_forms.choose import StableForm
from demi.exporter.write_model import check_model_target, write_model
from demi.float16 import half_format
from demi.plan import PrecisionPlan
from demi.progress import Step, silent
from demi.tensors import Feeds, TensorSpec


@dataclass(frozen=True, slots=True)
class Converted:
    """The result of `convert`."""

    model: onnx.ModelProto
    plan: PrecisionPlan
    comparison: Comparison | None
    """The measured accuracy; None when nothing was run (`verify=False`)."""
    planned: Planned
    casts: int
    """The number of Cast nodes that were inserted."""
    forms: tuple[StableForm, ...] = ()
    """Expressions that were rewritten because they overflow half on the way: safe, not exact."""


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
    rescale: bool = True,
    search_seconds: float = 60.0,
    seed: int = 0,
    step: Step = silent,
) -> Converted:
    """Convert an FP32 ONNX model to mixed half precision within an accuracy budget. `model` is not changed.

    Half weights in the source are widened to FP32 and planned anew; sequences, optionals and maps among the inputs and
    outputs are replaced by the tensors in them. Both only where the model is run.

    Args:
        model: the ONNX model; for files see `convert_file`.
        samples: sets of inputs, {input name: array}. Without them inputs are drawn with `seed`, and ranges are guesses.
        precision: `fp16` or `bf16`.
        budget: the limits that every output must stay within; the default Budget without it.
        keep_io_types: keep the types of the inputs and outputs; else float ones become half.
        keep_fp32: nodes to keep in FP32, by name, glob or operator type.
        force_half: nodes to force to half, overriding measurements.
        plan: a plan to carry out as it is, instead of finding one.
        calibrate: measure ranges and errors to find the plan; else the operator lists decide.
        verify: run the model and compare. With False nothing is run, `plan` or the operator lists decide, and the
            accuracy is unknown: for models that ONNX Runtime cannot run, or whose inputs are not tensors.
        optimize: fold constants and fuse normalizations first; a plan names the nodes of the optimized model.
        rescale: multiply constants by powers of two where ranges leave FP16, so that the tensors fit and no FP32 answer
            changes; a plan names the nodes of the rescaled model.
        search_seconds: the longest time to spend on the search for a plan.
        seed: the seed of drawn samples.
        step: a function from the name of a step to a context manager around it, to show progress.

    Raises:
        ConversionError: the model cannot be converted.
        SampleError: the samples do not fit the inputs.
        InputError: an argument has the wrong type or value, or the plan is for another model or format.
        OverBudgetError: the result is over the budget; it names the outputs.
    """
    require(model, onnx.ModelProto, "model", "an onnx.ModelProto; files are for `convert_file`")
    require(precision, str, "precision", "fp16 or bf16")
    require(budget, (Budget, type(None)), "budget", "a demi.accuracy.budget.Budget")
    _require_plan(plan)
    require_switches(
        keep_io_types=keep_io_types, calibrate=calibrate, verify=verify, optimize=optimize, rescale=rescale
    )
    require_number(search_seconds, "search_seconds", 0.0)
    require_number(seed, "seed", 0, whole=True)
    require_function(step, "step", "a function from a name to a context manager")
    half_format(precision)
    sets = sample_sets(samples)
    settings = PlanSettings(
        precision=precision,
        budget=budget or Budget(),
        calibrate=calibrate,
        keep_fp32=patterns(keep_fp32, "keep_fp32"),
        force_half=patterns(force_half, "force_half"),
        search_seconds=search_seconds,
        half_io=not keep_io_types,
        rescale=rescale,
    )
    given = read_proto(model).model
    if not verify:
        return _convert_unrun(given, settings, plan)
    return _convert_measured(given, sets, seed, settings, plan, optimize, step)


def _convert_unrun(given: ir.Model, settings: PlanSettings, plan: PrecisionPlan | None) -> Converted:
    """Convert by the plan or the operator lists, without running anything."""
    prepared = prepare(given)
    SchemaTypes()(prepared)
    if plan is not None:
        check_plan(prepared, plan, settings.precision)
    check_controls(prepared, settings.keep_fp32, settings.force_half)
    chosen = plan or op_list_plan(prepared, half_format(settings.precision), settings.keep_fp32, settings.force_half)
    lowered = apply_plan(prepared, chosen, half_io=settings.half_io)
    return Converted(ir.to_proto(lowered.model), chosen, None, Planned(chosen), lowered.casts)


def _convert_measured(
    given: ir.Model,
    sets: Sequence[Feeds],
    seed: int,
    settings: PlanSettings,
    plan: PrecisionPlan | None,
    optimize: bool,
    step: Step,
) -> Converted:
    """Run FP32 on the samples, then plan, convert and compare."""
    prepared = prepare(widen_source(_with_tensors(given, sets)).model)
    require_known_operators(prepared, hint="convert it without running: convert(model, verify=False)")
    fill_types(prepared)

    def gather(specs: Sequence[TensorSpec]) -> Samples:
        if sets:
            return fit_samples(sets, specs, "the samples given")
        return draw_samples(specs, seed, index_limits=index_limits(prepared))

    reference = run_reference(prepared, gather, sets[0] if sets else None)
    settings = replace(settings, varying=reference.varying)
    correct_shapes(prepared, reference.outputs)
    raised = raise_opset(prepared, reference.samples, reference.outputs, settings, step)
    ready = ready_for_planning(raised, reference.samples, reference.outputs, settings, optimize, step)
    done = convert_prepared(ready, reference.samples, reference.outputs, settings, plan, step)
    return Converted(
        ir.to_proto(done.lowered.model),
        done.planned.plan,
        done.comparison,
        done.planned,
        done.lowered.casts,
        done.forms,
    )


def _with_tensors(model: ir.Model, sets: Sequence[Feeds]) -> ir.Model:
    """Return the model with tensors as inputs and outputs, so that it can be run and measured."""
    exposed = expose_tensors(model, sets[0] if sets else None).model
    require_tensors(exposed)
    return exposed


def _require_plan(plan: PrecisionPlan | None) -> None:
    require(plan, (PrecisionPlan, type(None)), "plan", "a PrecisionPlan; `demi.plan.read_plan` reads one")


def convert_file(
    source: str | Path,
    target: str | Path,
    *,
    precision: str = "fp16",
    plan: PrecisionPlan | None = None,
    keep_io_types: bool = True,
) -> PrecisionPlan:
    """Convert an ONNX file of any size to another, weight by weight, without running it; return the plan carried out.

    `plan` decides, else the operator lists. External weights are streamed: memory holds the graph and about the largest
    weight. Weights beyond 2 GiB go to `TARGET.data`. The files appear complete or not at all. Raises SourceError,
    ConversionError and InputError as `convert` does, and BundleError when the target cannot be written.
    """
    for name, path in (("source", source), ("target", target)):
        require(path, (str, Path), name, "the path of an .onnx file")
    _require_plan(plan)
    require_switches(keep_io_types=keep_io_types)
    source, target = Path(source), Path(target)
    check_model_target(target)
    prepared = prepare(read_onnx(source))
    SchemaTypes()(prepared)
    chosen = plan or op_list_plan(prepared, half_format(precision))
    lowered = apply_plan(prepared, chosen, half_io=not keep_io_types)
    write_model(lowered.model, target)
    return chosen
