"""`demi export`: from a model file to a bundle, the whole story in `export_bundle`."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from calibration.emulate import widen
from calibration.observe import FAITHFUL
from calibration.report import ExportFacts, export_report
from calibration.samples import Samples, draw_samples, fit_samples, split_rows
from calibration.sessions import save_model, session_for, weight_bytes
from demi import __version__, bundle
from demi import manifest as manifests
from demi.errors import ConversionError, PackageError
from demi.manifest import BatchSpec, Manifest, PadSpec, Provenance
from demi.plan import PrecisionPlan
from demi.runtime.base import Device
from demi.runtime.ort import open_session
from demi.tensors import Feeds, TensorSpec
from exporter.api import Conversion, convert_prepared, ready_for_planning
from exporter.find import Planned, PlanSettings, Step, find_plan, silent
from exporter.measure import MeasuredCosts, Timer, measure_costs
from exporter.padding import find_padding
from exporter.passes.prepare import prepare
from exporter.passes.types import fill_types
from exporter.source import Source, SourceOptions, index_limits, open_source

GOLDEN_SETS = 4
GOLDEN_ROWS = 8


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What the user asked for."""

    source: Path
    output: Path
    """The model's folder; the bundle goes into a folder below it that is named after its version."""
    settings: PlanSettings = field(default_factory=PlanSettings)
    plan: PrecisionPlan | None = None
    """A plan to carry out instead of finding one."""
    version: int = 1
    options: SourceOptions = field(default_factory=SourceOptions)
    optimize: bool = True
    """Fold constants and fuse normalizations before planning."""
    reference: bool = True
    report: bool = True
    """Draw `report.html`, where the packages for it are installed."""
    max_batch: int = 32
    force: bool = False
    samples_origin: str = ""

    @property
    def target(self) -> Path:
        """The bundle's folder."""
        return self.output / str(self.version)


@dataclass(frozen=True, slots=True)
class Exported:
    """What came out: the bundle, the plan and the measured accuracy."""

    path: Path
    manifest: Manifest
    conversion: Conversion
    samples: Samples
    fp32_bytes: int
    half_bytes: int
    export_error: float | None
    floats: tuple[str, ...] = ("FP32",)
    """The float types that the source has, `FP32` first where it is one of them."""
    no_report: str = ""
    """Why the bundle holds no report, in words; empty when it does."""


def export_bundle(request: ExportRequest, step: Step = silent) -> Exported:
    """Convert a model file and write its bundle; nothing is left behind when any step fails.

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
    ready = ready_for_planning(prepared, samples, references, request.settings, request.optimize, step)
    conversion = convert_prepared(ready, samples, references, request.settings, request.plan, step)
    with step("writing the bundle"):
        return write_bundle(request, source, prepared, conversion, samples, references)


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
    settings.budget.check_names(references[0])
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
    with session_for(prepared, settings=FAITHFUL) as session:
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


def write_bundle(
    request: ExportRequest,
    source: Source,
    prepared: ir.Model,
    conversion: Conversion,
    samples: Samples,
    references: Sequence[Feeds],
) -> Exported:
    """Write every file into a draft, check the model as it stands on disk, and move the whole into place."""
    lowered, planned = conversion.lowered, conversion.planned
    golden = bundle.Golden(list(samples.feeds[:GOLDEN_SETS]), list(references[:GOLDEN_SETS]))
    with bundle.writing(request.target, force=request.force) as draft:
        save_model(lowered.model, draft / manifests.MODEL)
        inputs, outputs = check_model(draft / manifests.MODEL, request.settings.precision, lowered.model)
        if request.reference:
            save_model(prepared, draft / manifests.REFERENCE)
        bundle.write_golden(draft, golden)
        (draft / manifests.PLAN).write_bytes(planned.plan.to_json())
        planned.profile.save(draft / manifests.RANGES)
        (draft / manifests.ACCURACY).write_bytes(accuracy_report(conversion, samples, source))
        manifest = describe(request, inputs, outputs, batch_spec(request, prepared, inputs, outputs, samples), samples)
        no_report = ""
        if request.report:
            no_report = write_report(draft, manifest, conversion, samples, source, prepared)
        manifest = bundle.seal(draft, manifest)
    return Exported(
        path=request.target,
        manifest=manifest,
        conversion=conversion,
        samples=samples,
        fp32_bytes=weight_bytes(prepared),
        half_bytes=weight_bytes(lowered.model),
        export_error=source.export_error,
        floats=float_types(prepared),
        no_report=no_report,
    )


FLOATS = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.DOUBLE: "FP64",
}


def float_types(model: ir.Model) -> tuple[str, ...]:
    """The float types of a model's tensors, by the names people use."""
    graphs = (model.graph, *model.graph.subgraphs())
    values = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    values += [value for node in model.graph.all_nodes() for value in node.outputs]
    found = {value.dtype for value in values}
    return tuple(name for dtype, name in FLOATS.items() if dtype in found)


def write_report(
    draft: Path, manifest: Manifest, conversion: Conversion, samples: Samples, source: Source, prepared: ir.Model
) -> str:
    """Write `report.html`, the same for people; without the packages that draw it, say so and write none."""
    planned, lowered = conversion.planned, conversion.lowered
    facts = ExportFacts(
        manifest=manifest,
        plan=planned.plan,
        comparison=conversion.comparison,
        samples=samples,
        predicted=planned.predicted,
        single_flops=planned.fp32_share.flops if planned.fp32_share else None,
        single_bytes=planned.fp32_share.tensor_bytes if planned.fp32_share else None,
        first_divergence=planned.first_divergence,
        casts=lowered.casts,
        losses=lowered.losses,
        fp32_bytes=weight_bytes(prepared),
        half_bytes=weight_bytes(lowered.model),
        export_error=source.export_error,
    )
    try:
        (draft / manifests.REPORT).write_text(export_report(facts), encoding="utf-8")
    except PackageError as error:
        return f"the bundle has no {manifests.REPORT}; {error.hint}"
    return ""


def check_model(path: Path, precision: str, model: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of a model file that the ONNX checker passes and ONNX Runtime loads.

    ONNX Runtime's CPU provider has no bfloat16 kernels: a bf16 model's types are read from its emulated twin.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ConversionError(
            f"the converted model is not valid: {str(error).strip().splitlines()[0]}",
            hint="this is a defect in Demi: please report it with the model",
        ) from error
    if precision == "bf16":
        with session_for(widen(model), settings=FAITHFUL) as session:
            return session.inputs, session.outputs
    loaded = open_session(path)
    return loaded.inputs, loaded.outputs


def accuracy_report(conversion: Conversion, samples: Samples, source: Source) -> bytes:
    """`accuracy.json`: what was measured, what was predicted, and on what."""
    planned = conversion.planned
    document = {
        "schema": 1,
        "method": "half-precision emulator against FP32 (ONNX Runtime, CPU)",
        "samples": {"origin": samples.origin, "drawn": samples.drawn, "sets": len(samples)},
        "outputs": conversion.comparison.outputs,
        "within_budget": bool(conversion.comparison),
        "predicted_relative_l2": planned.predicted,
        "fp32_share": planned.fp32_share,
        "casts": conversion.lowered.casts,
        "first_divergence_if_all_half": planned.first_divergence,
        "weights_that_lose_values": conversion.lowered.losses,
        "onnx_against_pytorch_relative_l2": source.export_error,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def describe(
    request: ExportRequest,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    batch: BatchSpec,
    samples: Samples,
) -> Manifest:
    """The manifest, but for the digests of the files."""
    return Manifest(
        schema=manifests.SCHEMA,
        name=request.output.resolve().name,
        version=request.version,
        precision=request.settings.precision,
        inputs=inputs,
        outputs=outputs,
        batch=batch,
        budget=request.settings.budget,
        provenance=Provenance(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            source=request.source.name,
            source_sha256=_source_digest(request.source),
            tools={"demi": __version__} | _versions("onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "torch"),
            samples=samples.origin,
        ),
        input_ranges={} if samples.drawn else input_ranges(samples),
    )


def input_ranges(samples: Samples) -> dict[str, tuple[float, float]]:
    """The bounds of the finite values of every float input over all samples: what a server calls no news."""
    found: dict[str, tuple[float, float]] = {}
    for feeds in samples.feeds:
        for name, values in feeds.items():
            finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values[:0]
            if finite.size:
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = (min(low, float(finite.min())), max(high, float(finite.max())))
    return found


def batch_spec(
    request: ExportRequest,
    prepared: ir.Model,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    samples: Samples,
) -> BatchSpec:
    """Whether requests may be joined, and which axis of theirs may be padded so that different lengths can be."""
    free = has_free_batch((*inputs, *outputs))
    pad = find_padding(prepared, samples) if free else PadSpec()
    return BatchSpec(free=free, max_size=request.max_batch, pad=pad)


def has_free_batch(specs: Sequence[TensorSpec]) -> bool:
    """Whether every input and output has a free first axis, and all of them the same one."""
    first = {spec.shape[0] if spec.shape else None for spec in specs}
    return len(first) == 1 and isinstance(first.pop(), str)


def _source_digest(path: Path) -> str:
    """The digest of a model file; of a folder, that of its weights."""
    if path.is_file():
        return bundle.digest(path)
    weights = sorted(path.glob("*.safetensors"))
    return bundle.digest(weights[0]) if weights else ""


def _versions(*packages: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
