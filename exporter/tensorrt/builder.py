"""Build the bytes of an engine from an ONNX file and shapes. Works with TensorRT 10.13 to 11.x.

The network is strongly typed: every tensor has the type that the ONNX file gives it, so that the plan's FP32 nodes are
FP32 in the engine. (A weakly typed network treats them as hints.)
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
from demi.exporter.tensorrt.progress import Progress, make_monitor, run_interruptibly
from demi.exporter.tensorrt.shapes import ShapeOptions
from demi.progress import Report
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Cuda, Gpu
from demi.runtime.tensorrt.log import logger_of, register_plugins, why
from demi.runtime.tensorrt.session import no_gpu


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of an engine build."""

    device: Device = Device("cuda")  # noqa: RUF009 - frozen
    shapes: ShapeOptions = field(default_factory=ShapeOptions)
    workspace_bytes: int = 0
    """Limit of the device memory that a layer may use while it runs; 0 is no limit."""
    level: int | None = None
    """Builder optimization level, 0 to 5; None is TensorRT's default."""
    timing_cache: Path | None = None
    """File that keeps kernel timings between builds; None is a default file for this GPU and version."""
    hardware: str = engine_records.NO_COMPATIBILITY
    version_compatible: bool = False
    fp32_accumulate: bool = False
    key: Path = DEFAULT


def build_interruptibly(
    trt: Any,
    model: Path,
    ranges: Mapping[str, ShapeRange],
    options: EngineOptions,
    gpu: Gpu,
    report: Report | None = None,
) -> bytes:
    """Build on a separate thread, so that Ctrl-C can stop it; `report` gets the fraction done."""
    progress = Progress()

    def work() -> bytes:
        Cuda(options.device).use()  # a thread has its own current device
        return build_engine_bytes(trt, model, ranges, options, gpu, progress)

    return run_interruptibly(work, progress, report)


def build_engine_bytes(
    trt: Any, model: Path, ranges: Mapping[str, ShapeRange], options: EngineOptions, gpu: Gpu, progress: Progress
) -> bytes:
    """Read the model, configure the builder, build; return the serialized engine."""
    logger = logger_of(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # how pybind11 reports a null pointer
        raise no_gpu(logger) from error
    register_plugins(trt)
    # Required before TensorRT 11, ignored since. Take flags by name: their numbers differ between versions.
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
            hint="allow more memory, or ask for less: --workspace, --max-shapes, --builder-optimization-level",
        )
    if cache is not None:
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        measured = config.get_timing_cache()
        files.write_bytes_whole(cache_path, memoryview(measured.serialize()), mode=files.OWNER_ALONE)
    return bytes(serialized)


def _parse(trt: Any, network: Any, model: Path, logger: Any) -> None:
    """Fill the network from an ONNX file; ConversionError names the first node that TensorRT cannot take."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(model)):  # from the file, to find external weights beside it
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [f"{each.desc()} (node `{each.node_name()}`, {each.node_operator()})" for each in errors]
    raise ConversionError(
        "TensorRT cannot parse the model: " + ("\n  ".join(lines) or why(logger)),
        where=str(model),
        hint="ONNX Runtime can serve this bundle as it is: leave --tensorrt out",
    )


def _configure(trt: Any, config: Any, options: EngineOptions) -> None:
    if options.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.level is not None:
        config.builder_optimization_level = options.level
    # TF32 keeps 10 bits of fraction, as few as half: the nodes a plan keeps in FP32 need real FP32.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector has only names
    hardware = engine_records.HARDWARE[options.hardware]
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, hardware)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        # Without this the engine would contain host code, which Demi does not run.
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)


def _add_profile(builder: Any, config: Any, network: Any, ranges: Mapping[str, ShapeRange]) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise InputError(
                f"the values of input `{tensor.name}` determine shapes, and Demi cannot build an engine for that",
                hint="ONNX Runtime can serve this bundle as it is: leave --tensorrt out",
            )
        shapes = ranges[tensor.name]
        profile.set_shape(tensor.name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(profile) < 0:
        raise InputError(f"TensorRT rejects the shapes {dict(ranges)}", hint="check --min-shapes and --max-shapes")


def _use_timing_cache(config: Any, path: Path) -> Any:
    """Load the timings of earlier builds on this GPU and version; return the cache, which must outlive the build."""
    for blob in ([path.read_bytes()] if path.is_file() else []) + [b""]:
        cache = config.create_timing_cache(blob)
        if cache is not None and config.set_timing_cache(cache, False):  # False: refuse timings of another GPU
            return cache
    return None


def _cache_path(tensorrt: str, gpu: Gpu) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in gpu.name)
    return Path(f"~/.cache/demi/timing-{tensorrt}-{name}.cache").expanduser()
