"""Build a TensorRT engine beside a bundle; `build_engine` names the steps."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from demi import files
from demi.accuracy.compare import Comparison
from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle
from demi.bundles.drafts import scratch
from demi.calibration.report.engine import engine_report
from demi.calibration.sessions import save_model
from demi.engines import record as engine_records
from demi.engines.key import make_key
from demi.engines.record import EngineRecord, ShapeRange
from demi.errors import PackageError
from demi.exporter.passes.accumulate import accumulate_in_single
from demi.exporter.tensorrt.builder import EngineOptions, build_interruptibly
from demi.exporter.tensorrt.layers import Layer, layers_json
from demi.exporter.tensorrt.shapes import shape_ranges
from demi.exporter.tensorrt.verify import time_layers, verify_engine
from demi.progress import Step, silent
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Cuda, Gpu
from demi.runtime.cuda.capability import check_gpu
from demi.runtime.tensorrt.session import open_engine, require_tensorrt


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine on disk: its file, its record and its layers."""

    path: Path
    record: EngineRecord
    layers: list[Layer]
    comparison: Comparison | None
    """Its outputs for the golden inputs against FP32's; None where no golden inputs fit its shapes."""


def require_builder(device: Device) -> Gpu:
    """Return the GPU to build engines on; raise DeviceError or PackageError where it or TensorRT is missing."""
    require_tensorrt()
    gpu = Cuda(device).describe()
    check_gpu(gpu, device)
    return gpu


def build_engine(bundle: Bundle, options: EngineOptions, step: Step = silent) -> BuiltEngine:
    """Build a strongly typed engine from a bundle's mixed model, on this GPU, into the bundle's `engine` folder.

    `bundle` must have been verified. Raises DeviceError or PackageError without a GPU or TensorRT, InputError for shapes
    that do not fit or are not known, ConversionError, which names the node, for what TensorRT cannot build, and
    OverBudgetError for an engine that is over the bundle's budget: it is not kept.
    """
    gpu, trt = require_builder(options.device), require_tensorrt()
    bundle.require_proof()
    engine_records.check_room(bundle)
    ranges = shape_ranges(bundle.manifest.inputs, bundle.manifest.batch, options.shapes)
    key = make_key(options.key)
    with _model_file(bundle, options) as model, step("building the TensorRT engine") as report:
        engine_bytes = build_interruptibly(trt, model, ranges, options, gpu, report)
    session = open_engine(engine_bytes, (bundle.manifest.inputs, bundle.manifest.outputs), options.device)
    with step("comparing the engine with FP32"):
        comparison = verify_engine(session, bundle)
    with step("timing the engine's layers"):
        layers = time_layers(session, bundle, ranges)
    record = _record(bundle, options, ranges, trt.__version__, gpu)
    path = engine_records.write_engine(bundle, record, engine_bytes, key)
    shapes = {name: each.opt for name, each in ranges.items()}
    files.write_bytes_whole(
        path.with_name(engine_records.LAYERS), layers_json(layers, trt.__version__, gpu.name, shapes)
    )
    with contextlib.suppress(PackageError):  # without the report's packages there is layers.json only
        page = engine_report(bundle.manifest, trt.__version__, gpu.name, layers, comparison)
        files.write_bytes_whole(path.with_name(engine_records.REPORT), page.encode())
    return BuiltEngine(path, record, layers, comparison)


@contextlib.contextmanager
def _model_file(bundle: Bundle, options: EngineOptions) -> Iterator[Path]:
    """Yield the ONNX file to build from: the bundle's own, or one whose matrix products sum in FP32."""
    if not options.fp32_accumulate:
        yield bundle.model_path
        return
    model = ir.load(bundle.model_path)
    accumulate_in_single(model)
    with scratch() as folder:
        save_model(model, folder / manifests.MODEL)
        yield folder / manifests.MODEL


def _record(
    bundle: Bundle, options: EngineOptions, ranges: dict[str, ShapeRange], tensorrt: str, gpu: Gpu
) -> EngineRecord:
    return EngineRecord(
        schema=engine_records.SCHEMA,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tensorrt=tensorrt,
        gpu=gpu.name,
        capability=gpu.capability,
        driver_cuda=gpu.driver_cuda,
        shapes=ranges,
        model_sha256=bundle.manifest.files[manifests.MODEL].sha256,
        engine_sha256="",
        engine_bytes=0,
        hardware=options.hardware,
        version_compatible=options.version_compatible,
        options={
            "fp32_accumulate": options.fp32_accumulate,
            "builder_optimization_level": options.level,
            "workspace_bytes": options.workspace_bytes,
        },
    )
