"""Write a bundle's files into a draft, which becomes the bundle when it is complete."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx_ir as ir

from demi.accuracy.varying import Varying
from demi.bundles import bundle
from demi.bundles import manifest as manifests
from demi.bundles.manifest import BatchSpec, Manifest
from demi.calibration.emulation.widen import widen
from demi.calibration.report.export import ExportFacts, export_report
from demi.calibration.samples import Samples
from demi.calibration.sessions import save_model, session_for, weight_bytes
from demi.errors import DefectError, InferenceError, PackageError
from demi.exporter.batching.proof import declare_rows
from demi.exporter.bundle.manifest import describe
from demi.exporter.conversion import Conversion
from demi.exporter.processing.found import Found
from demi.exporter.request import Exported, ExportRequest
from demi.exporter.sources.onnx_checker import check_file
from demi.exporter.sources.options import Source
from demi.generation.recorded import write_texts
from demi.processing.description import encode
from demi.runtime.base import Session
from demi.runtime.onnxruntime.first_open import open_tried
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds, TensorSpec, check_feeds

GOLDEN_SETS = 4
"""Number of golden input sets that a bundle keeps, with FP32's outputs."""


def write_bundle(
    request: ExportRequest,
    source: Source,
    prepared: ir.Model,
    conversion: Conversion,
    samples: Samples,
    references: Sequence[Feeds],
    batch: BatchSpec,
) -> Exported:
    """Write every file into a draft, check the model file on disk, and move the draft into place."""
    lowered, planned = conversion.lowered, conversion.planned
    golden = bundle.Golden(list(samples.feeds[:GOLDEN_SETS]), list(references[:GOLDEN_SETS]))
    declare_rows(lowered.model, batch, references[0])
    with bundle.writing(request.target, force=request.force) as draft:
        save_model(lowered.model, draft / manifests.MODEL)
        checked = check_model(draft / manifests.MODEL, request.settings.precision, lowered.model, golden.inputs[0])
        inputs, outputs = checked.inputs, checked.outputs
        if request.reference:
            with _outputs_as(outputs, prepared):
                save_model(prepared, draft / manifests.REFERENCE)
        bundle.write_golden(draft, golden)
        (draft / manifests.PLAN).write_bytes(planned.plan.to_json())
        planned.profile.save(draft / manifests.RANGES)
        certificate = conversion.rescaling.certificate if conversion.rescaling is not None else None
        if source.processing is not None:
            write_processing(draft, source.processing)
        if conversion.texts:
            write_texts(draft, conversion.texts)
        if request.encoder is not None:
            shutil.copytree(request.encoder, draft / manifests.ENCODER)
        if certificate is not None:
            (draft / manifests.RESCALE).write_bytes(certificate.to_json())
        (draft / manifests.ACCURACY).write_bytes(
            accuracy_report(conversion, samples, source, request.settings.varying, checked.fails_here)
        )
        manifest = replace(
            describe(request, conversion.budget, inputs, outputs, batch, samples), rescaled=certificate is not None
        )
        no_report = ""
        if request.report:
            no_report = write_report(draft, manifest, conversion, samples, source, prepared)
        manifest = bundle.write_manifest(draft, manifest)
    return Exported(
        path=request.target,
        manifest=manifest,
        conversion=conversion,
        samples=samples,
        fp32_bytes=weight_bytes(prepared),
        half_bytes=weight_bytes(lowered.model),
        export_error=source.export_error,
        floats=float_types(prepared),
        half_types=source.half_types,
        warnings=source.warnings,
        notes=(*source.notes, *cast_notes(request.options.samples, samples)),
        no_report=no_report,
        fails_here=checked.fails_here,
    )


def write_processing(draft: Path, found: Found) -> None:
    """Write `processing.json`, and `tokenizer.json` for texts."""
    (draft / manifests.PROCESSING).write_bytes(encode(found.description))
    if found.tokenizer:
        (draft / manifests.TOKENIZER).write_text(found.tokenizer, encoding="utf-8")


def cast_notes(given: Sequence[Feeds], fitted: Samples) -> list[str]:
    """Return a sentence for each type that samples were converted from: `x` of float64 became float32."""
    became: dict[tuple[str, str], list[str]] = {}
    for name, array in fitted.feeds[0].items() if given else ():
        before = given[0][name].dtype if name in given[0] else array.dtype
        if before != array.dtype and "O" not in (before.kind, array.dtype.kind):
            became.setdefault((before.name, array.dtype.name), []).append(f"`{name}`")
    return [f"the samples of {', '.join(names)} are {was}, and became {now}" for (was, now), names in became.items()]


@contextlib.contextmanager
def _outputs_as(promised: Sequence[TensorSpec], reference: ir.Model) -> Iterator[None]:
    """Give the FP32 model's outputs the half model's shapes, which may be more precise, while the block runs.

    The manifest has these shapes, and a server checks both models against it.
    """
    known = {spec.name: ir.Shape(spec.shape) for spec in promised}
    before = [output.shape for output in reference.graph.outputs]
    for output in reference.graph.outputs:
        output.shape = known.get(output.name or "", output.shape)
    try:
        yield
    finally:
        for output, shape in zip(reference.graph.outputs, before, strict=True):
            output.shape = shape


FLOATS = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.DOUBLE: "FP64",
}


def float_types(model: ir.Model) -> tuple[str, ...]:
    """Return the float types of a model's tensors, as `FP32`, `FP16` and so on."""
    graphs = (model.graph, *model.graph.subgraphs())
    values = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    values += [value for node in model.graph.all_nodes() for value in node.outputs]
    found = {value.dtype for value in values}
    return tuple(name for dtype, name in FLOATS.items() if dtype in found)


def write_report(
    draft: Path, manifest: Manifest, conversion: Conversion, samples: Samples, source: Source, prepared: ir.Model
) -> str:
    """Write `report.html`; without the packages for it, write nothing and return the reason."""
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
        ranges=planned.profile.ranges,
        tokens=conversion.tokens,
    )
    try:
        (draft / manifests.REPORT).write_text(export_report(facts), encoding="utf-8")
    except PackageError as error:
        return f"the bundle has no {manifests.REPORT}; {error.hint}"
    return ""


@dataclass(frozen=True, slots=True)
class Checked:
    """A loaded model file: its inputs and outputs, and the error if it cannot run on this machine's CPU."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    fails_here: str = ""


def check_model(path: Path, precision: str, model: ir.Model, feeds: Feeds | None = None) -> Checked:
    """Check a model file with the ONNX checker, load it in ONNX Runtime, and run it on `feeds`.

    Some of ONNX Runtime's half kernels for the CPU load, but fail when they run. Its CPU provider has no bfloat16
    kernels at all: a bf16 model's types are read from its emulated twin, and it is not run.
    """
    try:
        check_file(path, model, full=True)
    except Exception as error:
        raise DefectError(
            f"the converted model is not valid: {str(error).strip().splitlines()[0]}",
            hint="this is a defect in Demi: please report it with the model",
        ) from error
    if precision == "bf16":
        with session_for(widen(model), settings=FAITHFUL) as session:
            return Checked(session.inputs, session.outputs)
    loaded = open_tried(path)
    return Checked(loaded.inputs, loaded.outputs, "" if feeds is None else first_run(loaded, feeds))


def first_run(session: Session, feeds: Feeds) -> str:
    """Return the runtime's error when a session fails on its own inputs; empty when it runs."""
    try:
        session.run(check_feeds(session.inputs, feeds, cast_floats=True))
    except InferenceError as error:
        return error.message
    return ""


def accuracy_report(
    conversion: Conversion, samples: Samples, source: Source, varying: Varying, fails_here: str = ""
) -> bytes:
    """Return `accuracy.json`: the measured and predicted errors, and the samples."""
    planned = conversion.planned
    document = {
        "schema": 1,
        "method": "half-precision emulator against FP32 (ONNX Runtime, CPU)",
        "samples": {"origin": samples.origin, "drawn": samples.drawn, "sets": len(samples)},
        "outputs": conversion.comparison.outputs,
        "within_budget": bool(conversion.comparison),
        "generation": conversion.tokens,
        "varying": varying,
        "predicted_relative_l2": planned.predicted,
        "uneven": conversion.uneven,
        "stable_forms": conversion.forms,
        "fp32_share": planned.fp32_share,
        "casts": conversion.lowered.casts,
        "first_divergence_if_all_half": planned.first_divergence,
        "weights_that_lose_values": conversion.lowered.losses,
        "onnx_against_pytorch_relative_l2": source.export_error,
        "fails_on_cpu": fails_here or None,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
