"""TensorRT's builder: an ONNX file and shapes in, an engine's bytes out. One code for 10.13 to 11.x.

The network is strongly typed: every tensor has the type that the ONNX file gives it, so that the plan's FP32 nodes are
FP32 in the engine. (A weakly typed network takes them for hints.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demi import files
from demi.engines import record as engine_records
from demi.engines.key import DEFAULT
from demi.engines.record import ShapeRange
from demi.errors import ConversionError, InputError
from demi.exporter.tensorrt.progress import Progress, make_monitor, watched
from demi.exporter.tensorrt.shapes import ShapeOptions
from demi.progress import Report
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Cuda, Gpu
from demi.runtime.tensorrt.log import logger_of, register_plugins, why
from demi.runtime.tensorrt.session import no_gpu


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is built, and for which shapes."""

    device: Device = Device("cuda")  # noqa: RUF009 - frozen
    shapes: ShapeOptions = field(default_factory=ShapeOptions)
    workspace_bytes: int = 0
    """Most device memory that a layer may use while it runs; 0 is all there is."""
    level: int | None = None
    """Builder optimization level, 0 to 5; None is TensorRT's own choice."""
    timing_cache: Path | None = None
    """Where measured kernels are kept from build to build; None is a file for this GPU and version."""
    hardware: str = engine_records.NO_COMPATIBILITY
    version_compatible: bool = False
    fp32_accumulate: bool = False
    key: Path = DEFAULT


def build_watched(
    trt: Any,
    model: Path,
    ranges: Mapping[str, ShapeRange],
    options: EngineOptions,
    gpu: Gpu,
    report: Report | None = None,
) -> bytes:
    """The plan of an engine, built on a thread of its own so that Ctrl-C stops it; `report` is told how far it is."""
    progress = Progress()

    def work() -> bytes:
        Cuda(options.device).use()  # a thread has its own current device
        return build_plan(trt, model, ranges, options, gpu, progress)

    return watched(work, progress, report)


def build_plan(
    trt: Any, model: Path, ranges: Mapping[str, ShapeRange], options: EngineOptions, gpu: Gpu, progress: Progress
) -> bytes:
    """Read, configure, build: an engine's bytes. The steps that TensorRT itself knows."""
    logger = logger_of(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # pybind11's words for a null pointer
        raise no_gpu(logger) from error
    register_plugins(trt)
    # Required before TensorRT 11, ignored since. The flags' numbers have moved: never write one.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, model, logger)
    config = builder.create_builder_config()
    monitor = make_monitor(trt, progress)
    config.progress_monitor = monitor
    _configure(trt, config, options)
    _add_profile(builder, config, network, ranges)
    cache_path = options.timing_cache or _cache_path(trt.__version__, gpu)
    cache = _use_timing_cache(config, cache_path)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise ConversionError(
            f"TensorRT could not build the engine: {why(logger)}",
            where=str(model),
            hint="give it more memory or less to do: --workspace, --max-shapes, --builder-optimization-level",
        )
    if cache is not None:
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        measured = config.get_timing_cache()
        files.write_bytes_whole(cache_path, memoryview(measured.serialize()), mode=files.OWNER_ALONE)
    return bytes(serialized)


def _parse(trt: Any, network: Any, model: Path, logger: Any) -> None:
    """Fill the network from an ONNX file; ConversionError names the first node that TensorRT cannot take."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(model)):  # which finds weights beside the file
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [f"{each.desc()} (node `{each.node_name()}`, {each.node_operator()})" for each in errors]
    raise ConversionError(
        "TensorRT cannot take the model: " + ("\n  ".join(lines) or why(logger)),
        where=str(model),
        hint="ONNX Runtime runs this bundle as it is; leave --tensorrt out",
    )


def _configure(trt: Any, config: Any, options: EngineOptions) -> None:
    if options.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.level is not None:
        config.builder_optimization_level = options.level
    # TF32 keeps 10 bits of fraction, as few as half: the nodes a plan keeps in FP32 need real FP32.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector knows names alone
    hardware = engine_records.HARDWARE[options.hardware]
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, hardware)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        # Without this, code for the host would be part of the engine, which Demi does not let run.
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)


def _add_profile(builder: Any, config: Any, network: Any, ranges: Mapping[str, ShapeRange]) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise InputError(
                f"the values of input `{tensor.name}` decide shapes, and Demi builds no engine for that",
                hint="ONNX Runtime runs this bundle as it is; leave --tensorrt out",
            )
        shapes = ranges[tensor.name]
        profile.set_shape(tensor.name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(profile) < 0:
        raise InputError(
            f"TensorRT does not take the shapes {dict(ranges)}", hint="check --min-shapes and --max-shapes"
        )


def _use_timing_cache(config: Any, path: Path) -> Any:
    """Start from what earlier builds measured, where that was for this GPU and version; an object to keep."""
    for blob in ([path.read_bytes()] if path.is_file() else []) + [b""]:
        cache = config.create_timing_cache(blob)
        if cache is not None and config.set_timing_cache(cache, False):  # False: none of another GPU
            return cache
    return None


def _cache_path(tensorrt: str, gpu: Gpu) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in gpu.name)
    return Path(f"~/.cache/demi/timing-{tensorrt}-{name}.cache").expanduser()
