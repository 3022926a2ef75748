"""`demi export --no-run`: convert a model that cannot be run here into a bundle that is marked as unproven.

For operators that only the target has, such as TensorRT's plugins. The operator lists decide, or the given plan;
the bundle has no reference and no golden outputs, and its manifest gives the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir

from demi.bundles import bundle
from demi.bundles import manifest as manifests
from demi.bundles.manifest import BatchSpec, Manifest
from demi.calibration.samples import Samples
from demi.calibration.sessions import save_model, weight_bytes
from demi.errors import DefectError, InputError
from demi.exporter.bundle.manifest import describe
from demi.exporter.bundle.write import float_types
from demi.exporter.conversion import check_plan
from demi.exporter.passes.lower import Lowered, apply_plan
from demi.exporter.passes.prepare import prepare
from demi.exporter.passes.schema_types import SchemaTypes
from demi.exporter.planning.node_patterns import check_controls
from demi.exporter.planning.op_list import op_list_plan
from demi.exporter.request import ExportRequest
from demi.exporter.sources.graph_specs import graph_specs
from demi.exporter.sources.onnx_checker import check_file, foreign_nodes
from demi.exporter.sources.onnx_file import read_onnx
from demi.float16 import half_format
from demi.plan import PrecisionPlan
from demi.progress import Step, silent

NOT_PROVEN = (
    "nothing was run: neither its accuracy, nor that the values fit half, nor that it runs at all was measured; "
    "operator lists and constants alone decided"
)


@dataclass(frozen=True, slots=True)
class Unproven:
    """The result: the bundle, its plan, and the unknown operators."""

    path: Path
    manifest: Manifest
    plan: PrecisionPlan
    casts: int
    fp32_bytes: int
    half_bytes: int
    floats: tuple[str, ...]
    foreign: tuple[str, ...]
    """Operators that are in neither ONNX nor ONNX Runtime, with their domains; they keep their types."""


def export_unproven(request: ExportRequest, step: Step = silent) -> Unproven:
    """Convert an ONNX file without running it, and write its bundle completely or not at all.

    Raises as `export_bundle` does, but for samples and budget, and InputError for a file that is not ONNX.
    """
    manifests.check_model_name(request.output.resolve().name)
    bundle.check_target(request.target, force=request.force)
    if request.source.suffix != ".onnx":
        raise InputError(
            "--no-run requires an .onnx file, since an export from PyTorch must be compared with PyTorch",
            where=str(request.source),
            hint="export it with torch.onnx.export first",
        )
    with step("reading the model"):
        source = read_onnx(request.source, foreign=True)
    with step("preparing the graph"):
        prepared = prepare(source)
        SchemaTypes()(prepared)
    plan = _plan(prepared, request)
    with step(f"converting to mixed {request.settings.precision}"):
        lowered = apply_plan(prepared, plan, half_io=request.settings.half_io)
    with step("writing the bundle"):
        manifest = _write(request, lowered, plan)
    return Unproven(
        path=request.target,
        manifest=manifest,
        plan=plan,
        casts=lowered.casts,
        fp32_bytes=weight_bytes(prepared),
        half_bytes=weight_bytes(lowered.model),
        floats=float_types(prepared),
        foreign=tuple(dict.fromkeys(_full_name(node) for node in foreign_nodes(prepared))),
    )


def _plan(prepared: ir.Model, request: ExportRequest) -> PrecisionPlan:
    settings = request.settings
    if request.plan is not None:
        check_plan(prepared, request.plan, settings.precision)
        return request.plan
    check_controls(prepared, settings.keep_fp32, settings.force_half)
    return op_list_plan(prepared, half_format(settings.precision), settings.keep_fp32, settings.force_half)


def _write(request: ExportRequest, lowered: Lowered, plan: PrecisionPlan) -> Manifest:
    graph = lowered.model.graph
    with bundle.writing(request.target, force=request.force) as draft:
        save_model(lowered.model, draft / manifests.MODEL)
        try:
            check_file(draft / manifests.MODEL, lowered.model, full=True, foreign=True)
        except Exception as error:
            raise DefectError(
                f"the converted model is not valid: {str(error).strip().splitlines()[0]}",
                hint="this is a defect in Demi: please report it with the model",
            ) from error
        (draft / manifests.PLAN).write_bytes(plan.to_json())
        (draft / manifests.ACCURACY).write_bytes(_accuracy(lowered))
        manifest = describe(
            request,
            request.settings.budget,
            graph_specs(graph.inputs),
            graph_specs(graph.outputs),
            BatchSpec(free=False, max_size=request.max_batch, why_not="nothing was run when it was exported"),
            Samples((), "nothing was run", drawn=True),
            proven=False,
        )
        return bundle.write_manifest(draft, manifest)


def _accuracy(lowered: Lowered) -> bytes:
    """Return the `accuracy.json` of a model that was not run."""
    document = {
        "schema": 1,
        "method": f"none: {NOT_PROVEN}",
        "samples": None,
        "outputs": [],
        "within_budget": None,
        "casts": lowered.casts,
        "weights_that_lose_values": lowered.losses,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _full_name(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type
