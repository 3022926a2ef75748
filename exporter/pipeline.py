"""`demi export`: from a model file to a bundle, the whole story in `export_bundle`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from calibration.observe import FAITHFUL
from calibration.samples import Samples, draw_samples, fit_samples, split_rows
from calibration.sessions import session_for
from demi import bundle
from demi import manifest as manifests
from demi.runtime.base import Device
from demi.runtime.first import open_tried
from demi.tensors import Feeds, TensorSpec
from exporter.api import Conversion, convert_prepared, ready_for_planning
from exporter.batching import declare_rows, find_batch
from exporter.find import Planned, PlanSettings, Step, find_plan, silent
from exporter.gain import Gain, gain
from exporter.judging import budget_for
from exporter.measure import MeasuredCosts, Timer, measure_costs
from exporter.passes.prepare import prepare
from exporter.passes.types import fill_types
from exporter.request import Exported, ExportRequest
from exporter.source import Source, SourceOptions, index_limits, open_source
from exporter.writing import float_types, write_bundle

GOLDEN_ROWS = 8


def export_bundle(request: ExportRequest, step: Step = silent, warn: Callable[[str], None] | None = None) -> Exported:
    """Convert a model file and write its bundle; nothing is left behind when any step fails.

    `warn` gets, before anything is written, what speaks against a conversion that brings next to nothing.

    Raises a SourceError, SampleError, ConversionError or BundleError where the input is wrong, and OverBudgetError,
    which names the outputs, when the converted model is not within the budget.
    """
    manifests.check_model_name(request.output.resolve().name)
    bundle.check_target(request.target, force=request.force)
    with step("reading the model"):
        source = open_source(request.source, request.options)
    with step("preparing the graph"):
        prepared = prepare(source.model)
        fill_types(prepared)
    with step("running FP32 on the samples"):
        samples, references = run_reference(prepared, source, request.options, request.samples_origin)
    with step("trying rows alone and in batches"):
        batch = find_batch(prepared, samples, request.max_batch)
        declare_rows(prepared, batch, references[0])
    ready = ready_for_planning(prepared, samples, references, request.settings, request.optimize, step)
    conversion = convert_prepared(ready, samples, references, request.settings, request.plan, step)
    gained = _gained(prepared, conversion)
    if warn is not None and gained.objection:
        warn(gained.objection)
    with step("writing the bundle"):
        return replace(write_bundle(request, source, prepared, conversion, samples, references, batch), gain=gained)


def _gained(prepared: ir.Model, conversion: Conversion) -> Gain:
    planned = conversion.planned
    single = planned.fp32_share.flops if planned.fp32_share else None
    return gain(prepared, conversion.lowered.model, planned.plan, single, float_types(prepared))


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What `calibrate_model` found."""

    planned: Planned
    samples: Samples
    measured: MeasuredCosts | None = None
    """What the nodes cost on a device, where that was asked for."""


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
    """The ranges and the plan of a model file, without converting it; with measured costs where a device is given.

    `timer` measures them in place of ONNX Runtime.

    Raises as `export_bundle` does, but for the budget.
    """
    with step("reading the model"):
        source = open_source(path, options)
    prepared = prepare(source.model)
    fill_types(prepared)
    with step("running FP32 on the samples"):
        samples, references = run_reference(prepared, source, options, samples_origin)
    settings = replace(settings, budget=budget_for(prepared, references, settings.budget))
    ready = ready_for_planning(prepared, samples, references, settings, optimized, step)
    if profiled_on is None:
        return Calibrated(find_plan(ready, samples, settings, step), samples)
    with step(f"measuring the nodes on {profiled_on}"):
        measured = measure_costs(ready, samples, settings.precision, profiled_on, settings.device, timer)
    return Calibrated(find_plan(ready, samples, replace(settings, device=measured.costs), step), samples, measured)


def run_reference(
    prepared: ir.Model, source: Source, options: SourceOptions, samples_origin: str
) -> tuple[Samples, list[Feeds]]:
    """The samples to measure on, and what FP32 answers to each."""
    with session_for(prepared, settings=FAITHFUL, opener=open_tried) as session:
        samples = gather_samples(session.inputs, source, options, samples_origin)
        return samples, [session.run(feeds) for feeds in samples.feeds]


def gather_samples(specs: Sequence[TensorSpec], source: Source, options: SourceOptions, origin: str) -> Samples:
    """The user's samples, else the examples that came with the source, else drawn ones (which say so)."""
    if options.samples:
        return _in_rows(fit_samples(options.samples, specs, origin), specs)
    if source.examples and not options.inputs:
        return _in_rows(fit_samples(source.examples, specs, "the examples in the source file"), specs)
    return draw_samples(specs, options.seed, index_limits=index_limits(source.model))


def _in_rows(samples: Samples, specs: Sequence[TensorSpec]) -> Samples:
    feeds = tuple(part for whole in samples.feeds for part in split_rows(whole, specs, GOLDEN_ROWS))
    return Samples(feeds, samples.origin, samples.drawn)
