"""A bundle's files, written into a draft that becomes the bundle when all of them are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx
import onnx_ir as ir

from calibration.emulate import widen
from calibration.observe import FAITHFUL
from calibration.report import ExportFacts, export_report
from calibration.samples import Samples
from calibration.sessions import save_model, session_for, weight_bytes
from demi import bundle
from demi import manifest as manifests
from demi.errors import DefectError, PackageError
from demi.manifest import BatchSpec, Manifest
from demi.runtime.first import open_tried
from demi.tensors import Feeds, TensorSpec
from exporter.api import Conversion
from exporter.batching import declare_rows
from exporter.describing import describe
from exporter.request import Exported, ExportRequest
from exporter.source import Source

GOLDEN_SETS = 4
"""Sets of inputs that a bundle keeps, with the answers of FP32."""


def write_bundle(
    request: ExportRequest,
    source: Source,
    prepared: ir.Model,
    conversion: Conversion,
    samples: Samples,
    references: Sequence[Feeds],
    batch: BatchSpec,
) -> Exported:
    """Write every file into a draft, check the model as it stands on disk, and move the whole into place."""
    lowered, planned = conversion.lowered, conversion.planned
    golden = bundle.Golden(list(samples.feeds[:GOLDEN_SETS]), list(references[:GOLDEN_SETS]))
    declare_rows(lowered.model, batch, references[0])
    with bundle.writing(request.target, force=request.force) as draft:
        save_model(lowered.model, draft / manifests.MODEL)
        inputs, outputs = check_model(draft / manifests.MODEL, request.settings.precision, lowered.model)
        if request.reference:
            save_model(prepared, draft / manifests.REFERENCE)
        bundle.write_golden(draft, golden)
        (draft / manifests.PLAN).write_bytes(planned.plan.to_json())
        planned.profile.save(draft / manifests.RANGES)
        (draft / manifests.ACCURACY).write_bytes(accuracy_report(conversion, samples, source))
        manifest = describe(request, conversion.budget, inputs, outputs, batch, samples)
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
        raise DefectError(
            f"the converted model is not valid: {str(error).strip().splitlines()[0]}",
            hint="this is a defect in Demi: please report it with the model",
        ) from error
    if precision == "bf16":
        with session_for(widen(model), settings=FAITHFUL) as session:
            return session.inputs, session.outputs
    loaded = open_tried(path)
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
