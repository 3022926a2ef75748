"""`demi export`: from a model file to a bundle; `export_bundle` names the steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from demi.bundles import bundle
from demi.bundles import manifest as manifests
from demi.calibration.samples import Samples
from demi.errors import InputError
from demi.exporter.batching.proof import declare_rows, find_batch
from demi.exporter.bundle.write import float_types, write_bundle
from demi.exporter.conversion import (
    Conversion,
    brought_into_range,
    convert_prepared,
    plan_in_range,
    raise_opset,
    ready_for_planning,
)
from demi.exporter.generation.trial import measure_tokens, require_tokens
from demi.exporter.passes.declared_shapes import correct_shapes
from demi.exporter.passes.fill_types import fill_types
from demi.exporter.passes.prepare import prepare
from demi.exporter.planning.find_plan import Planned, PlanSettings
from demi.exporter.planning.gain import Gain, gain
from demi.exporter.planning.judged_outputs import budget_for
from demi.exporter.planning.measured_costs import MeasuredCosts, Timer, measure_costs
from demi.exporter.processing.raw_source import read_source
from demi.exporter.reference import Reference, run_reference
from demi.exporter.request import Exported, ExportRequest
from demi.exporter.sources.onnx_file import require_known_operators
from demi.exporter.sources.options import Source, SourceOptions
from demi.exporter.sources.samples import gather_samples
from demi.progress import Step, silent
from demi.runtime.base import Device


def export_bundle(request: ExportRequest, step: Step = silent, warn: Callable[[str], None] | None = None) -> Exported:
    """Convert a model file and write its bundle; nothing is left behind when any step fails.

    `warn` gets a warning, before anything is written, when half precision gains almost nothing.

    Raises a SourceError, SampleError, ConversionError or BundleError where the input is wrong, and OverBudgetError,
    which names the outputs, when the converted model is not within the budget.
    """
    manifests.check_model_name(request.output.resolve().name)
    bundle.check_target(request.target, force=request.force)
    with step("reading the model"):
        source, options = read_source(request.source, replace(request.options, own_names=True))
        request = replace(request, options=options)
        require_known_operators(source.model, str(request.source))
    if request.settings.budget.tokens is not None and source.trial is None:
        raise InputError(
            "`tokens` is a limit for models that generate",
            where="--budget",
            hint="export a transformers folder with a task such as --task text-generation",
        )
    if source.encoder is None:
        return _export_source(request, source, step, warn)
    with tempfile.TemporaryDirectory(prefix="demi-encoder-") as folder:
        encoder = _export_source(encoder_request(request, source.encoder, Path(folder)), source.encoder, step)
        return _export_source(replace(request, encoder=encoder.path), source, step, warn, encoder.conversion)


def encoder_request(request: ExportRequest, encoder: Source, folder: Path) -> ExportRequest:
    """Return the request for the bundle of an encoder, below `folder`: with samples of its own, and limits for its outputs."""
    names = {value.name for value in encoder.model.graph.outputs}
    limits = {name: limits for name, limits in request.settings.budget.outputs.items() if name in names}
    budget = replace(request.settings.budget, outputs=limits, tokens=None)
    options = replace(request.options, samples=encoder.examples)
    return replace(
        request,
        output=folder / request.output.resolve().name,
        settings=replace(request.settings, budget=budget),
        options=options,
        plan=None,
        report=False,
    )


def _export_source(
    request: ExportRequest,
    source: Source,
    step: Step,
    warn: Callable[[str], None] | None = None,
    encoder: Conversion | None = None,
) -> Exported:
    """Convert a source that was read, and write its bundle; `encoder` is the conversion of a decoder's encoder."""
    with step("preparing the graph"):
        prepared = prepare(source.model)
        fill_types(prepared)
    with step("running FP32 on the samples"):
        reference = _run_reference(prepared, source, request.options, request.samples_origin)
    samples, references = reference.samples, reference.outputs
    half_names = source.half_names if request.settings.precision == "fp16" else frozenset()
    settings = replace(request.settings, varying=reference.varying, half_names=half_names)
    warnings = correct_shapes(prepared, references)
    with step("trying rows alone and in batches"):
        batch = find_batch(prepared, samples, request.max_batch)
        declare_rows(prepared, batch, references[0])
    raised = raise_opset(prepared, samples, references, settings, step)
    ready = ready_for_planning(raised, samples, references, settings, request.optimize, step)
    conversion = convert_prepared(ready, samples, references, settings, request.plan, step)
    if source.trial is not None:
        with step("generating in FP32 and in half"):
            tried = measure_tokens(source.trial, prepared, conversion, encoder)
        require_tokens(tried.agreement, settings.budget.tokens)
        conversion = replace(conversion, tokens=tried.agreement, texts=tried.texts)
    gained = _gained(prepared, conversion)
    if warn is not None and gained.objection:
        warn(gained.objection)
    with step("writing the bundle"):
        written = write_bundle(
            replace(request, settings=settings),
            replace(source, warnings=warnings),
            raised,
            conversion,
            samples,
            references,
            batch,
        )
        return replace(written, gain=gained)


def _gained(prepared: ir.Model, conversion: Conversion) -> Gain:
    planned = conversion.planned
    single = planned.fp32_share.flops if planned.fp32_share else None
    return gain(prepared, conversion.lowered.model, planned.plan, single, float_types(prepared))


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The result of `calibrate_model`."""

    planned: Planned
    samples: Samples
    measured: MeasuredCosts | None = None
    """Measured node costs on a device, if requested."""


def calibrate_model(
    path: Path,
    options: SourceOptions,
    settings: PlanSettings,
    samples_origin: str = "",
    optimized: bool = True,
    profiled_on: Device | None = None,
    step: Step = silent,
    timer: Timer | None = None,
) -> Calibrated:
    """Find the ranges and the plan of a model file without converting it; measure costs if a device is given.

    `timer` measures them instead of ONNX Runtime. Raises as `export_bundle` does, but for the budget.
    """
    with step("reading the model"):
        source, options = read_source(path, replace(options, own_names=True))
        require_known_operators(source.model, str(path))
    prepared = prepare(source.model)
    fill_types(prepared)
    with step("running FP32 on the samples"):
        reference = _run_reference(prepared, source, options, samples_origin)
    samples, references = reference.samples, reference.outputs
    settings = replace(settings, varying=reference.varying)
    correct_shapes(prepared, references)
    settings = replace(settings, budget=budget_for(prepared, references, settings.budget))
    raised = raise_opset(prepared, samples, references, settings, step)
    ready = ready_for_planning(raised, samples, references, settings, optimized, step)
    ranged = brought_into_range(ready, samples, settings, step)
    if profiled_on is None:
        return Calibrated(plan_in_range(ranged, samples, settings, step), samples)
    with step(f"measuring the nodes on {profiled_on}"):
        measured = measure_costs(ranged.model, samples, settings.precision, profiled_on, settings.device, timer)
    settings = replace(settings, device=measured.costs)
    return Calibrated(plan_in_range(ranged, samples, settings, step), samples, measured)


def _run_reference(prepared: ir.Model, source: Source, options: SourceOptions, origin: str) -> Reference:
    return run_reference(prepared, lambda specs: gather_samples(specs, source, options, origin))
