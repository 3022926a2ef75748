"""Sessions of TensorRT engines, which `exporter/tensorrt/build.py` builds. Works with TensorRT 10.13 to 11.x.

An execution context runs one batch at a time, so a session has two: while one batch runs, the next is copied in on
another stream. Engines are native code: `demi.engines.record` decides which may be loaded, and host code inside an
engine is forbidden (`engine_host_code_allowed` is never set).
"""

from __future__ import annotations

import collections
import functools
import importlib.util
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demi.errors import (
    BundleError,
    DeviceError,
    InferenceError,
    PackageError,
    missing_package,
)
from demi.runtime.base import Device, Ready
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.buffers import Lease, Pool
from demi.runtime.cuda.capture_lock import CAPTURE_LOCK
from demi.runtime.onnxruntime.binding import AHEAD
from demi.runtime.onnxruntime.cuda_graphs import as_rows, bucket_of, can_replay
from demi.runtime.tensorrt.contexts import EngineRunner
from demi.runtime.tensorrt.log import logger_of, register_plugins, why
from demi.tensors import DType, Feeds, TensorSpec, check_feeds

OLDEST = (10, 13)
"""The oldest supported TensorRT: the first with the strong typing that Demi needs and today's interface."""

DTYPES = {
    "FLOAT": DType.FP32,
    "HALF": DType.FP16,
    "BF16": DType.BF16,
    "INT64": DType.INT64,
    "INT32": DType.INT32,
    "INT8": DType.INT8,
    "UINT8": DType.UINT8,
    "BOOL": DType.BOOL,
}
"""TensorRT's names of the supported element types."""

Specs = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""Inputs and outputs, with the names of their free axes."""

_MODES = ("INPUT", "OUTPUT")


def require_tensorrt() -> Any:
    """Import tensorrt. Raises PackageError when it is missing or older than 10.13."""
    try:
        import tensorrt
    except ImportError as error:
        raise missing_package("tensorrt", "tensorrt") from error
    if tuple(int(part) for part in str(tensorrt.__version__).split(".")[:2]) < OLDEST:
        raise PackageError(
            f"TensorRT {tensorrt.__version__} is installed, but 10.13 or newer is needed",
            hint="install it with: pip install 'demi-inference[tensorrt]'",
        )
    return tensorrt


def make_profiler(trt: Any) -> Any:
    """Return a TensorRT profiler that sums up each layer's milliseconds in `totals_ms`."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.totals_ms: dict[str, float] = collections.defaultdict(float)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.totals_ms[layer_name] += ms

    return Profiler()


def engine_version(serialized: bytes) -> str | None:
    """Read the TensorRT version from the first bytes of a serialized engine; None if the bytes are not an engine.

    Format after trtexec's --getPlanVersionOnly.
    """
    if len(serialized) < 28 or struct.unpack_from("<II", serialized) != (0x74727466, 0):
        return None
    return ".".join(map(str, serialized[24:28]))


class TrtSession:
    """A loaded engine. Owns the engine, its contexts and their memory.

    Free axes get their names from the bundle, since an engine does not keep them. With `graph_rows`, batches of up to
    so many rows are filled up to a power of two and run as CUDA graphs.
    """

    def __init__(self, engine: Any, trt: Any, cuda: Cuda, logger: Any, specs: Specs, graph_rows: int = 0) -> None:
        self._inputs, self._outputs = (
            _typed(trt, engine, side, mode) for side, mode in zip(specs, _MODES, strict=True)
        )
        self._trt, self._engine, self._cuda, self._logger = trt, engine, cuda, logger
        self.keeps: tuple[Any, ...] = ()
        """Objects that must live as long as the engine."""
        self._names = [spec.name for spec in self._outputs]
        self._graph_rows = graph_rows if graph_rows and can_replay(self._inputs, self._outputs) else 0
        graphs = self._graph_rows > 0
        make = functools.partial(
            EngineRunner, trt, engine, cuda, logger, self._outputs, graphs=graphs
        )  # without `self`: no cycle
        self._runners: Pool[EngineRunner] = Pool(make, AHEAD)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the model's inputs, in order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the model's outputs, in order."""
        return self._outputs

    @property
    def device(self) -> Device:
        """Return the device that it runs on."""
        return self._cuda.device

    @property
    def device_memory_bytes(self) -> int:
        """Return the bytes of device memory that each context needs between its layers."""
        return int(self._engine.device_memory_size_v2)

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        """Run the engine and return its outputs. Raises TensorError for shapes that it was not built for."""
        return self.stage(feeds)(outputs)

    def stage(self, feeds: Feeds) -> Ready:
        """Copy the inputs to the device, possibly while another batch runs, and return the run."""
        feeds = check_feeds(self._inputs, feeds)
        rows = len(next(iter(feeds.values()))) if self._graph_rows else 0
        bucket = bucket_of(rows, self._graph_rows)
        if bucket is not None:
            feeds = {name: as_rows(array, bucket) for name, array in feeds.items()}
        lease = Lease(self._runners)
        with lease as runner:
            runner.send(feeds)
        return functools.partial(self._run, lease, rows if bucket is not None else None)

    def time_layers(self, feeds: Feeds, runs: int) -> tuple[str, dict[str, float]]:
        """Return the inspector's JSON on the layers at these shapes, and the mean time of each layer in ms."""
        times = make_profiler(self._trt)
        feeds = check_feeds(self._inputs, feeds)
        with EngineRunner(self._trt, self._engine, self._cuda, self._logger, self._outputs) as runner:
            runner.send(feeds)
            runner.run()  # the first run loads kernels
            runner.context.profiler = times
            for _ in range(runs):
                runner.run()
            inspector = self._engine.create_engine_inspector()
            inspector.execution_context = runner.context  # which has the shapes
            text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return str(text), {name: total / runs for name, total in times.totals_ms.items()}

    def _run(self, lease: Lease[EngineRunner], rows: int | None, outputs: Sequence[str] | None = None) -> Feeds:
        try:
            answers = lease.item.run()
        finally:
            lease.end()
        return {name: answers[name][:rows] for name in (outputs if outputs is not None else self._names)}


def open_engine(serialized: bytes, specs: Specs, device: Device, graph_rows: int = 0) -> TrtSession:
    """Open a session for a serialized engine that `demi.engines.record` has verified.

    Raises DeviceError when this version of TensorRT or this GPU cannot load it, and BundleError when its tensors differ
    from `specs`.
    """
    trt, cuda = require_tensorrt(), Cuda(device)
    logger = logger_of(trt)
    cuda.use()
    runtime, built = make_runtime(trt, logger), engine_version(serialized)
    is_older = built is not None and built.split(".") != str(trt.__version__).split(".")[:4]
    with CAPTURE_LOCK.changing_sessions():
        reader = (_lean_runtime(runtime) if is_older else None) or runtime
        engine = reader.deserialize_cuda_engine(serialized)
    if engine is None:
        lean = f", or install the runtime of its version: pip install tensorrt-lean=={built}" if is_older else ""
        raise DeviceError(
            f"TensorRT {trt.__version__} cannot load the engine ({f'built with {built}' if built else 'not an engine'}): {why(logger)}",
            hint=f"build it again on this machine with `demi export --tensorrt BUNDLE`{lean}",
        )
    session = TrtSession(engine, trt, cuda, logger, specs, graph_rows)
    session.keeps = (runtime, reader)
    return session


def _lean_runtime(runtime: Any) -> Any:
    """Load the runtime of another version from the package `tensorrt-lean`; None where it is not installed.

    A version-compatible engine is built without an embedded runtime, which would be code from an untrusted file, and
    needs the lean runtime of the version that built it.
    """
    spec = importlib.util.find_spec("tensorrt_lean_libs")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = sorted(path for folder in folders for path in Path(folder).glob("libnvinfer_lean.so*"))
    return runtime.load_runtime(str(found[0])) if found else None


def make_runtime(trt: Any, logger: Any) -> Any:
    """Create TensorRT's runtime. Raises DeviceError where it finds no GPU or no driver."""
    try:
        runtime = trt.Runtime(logger)
    except TypeError as error:  # how pybind11 reports a null pointer
        raise no_gpu(logger) from error
    register_plugins(trt)
    return runtime


def no_gpu(logger: Any) -> DeviceError:
    """Return the error for a TensorRT that cannot start."""
    return DeviceError(
        f"TensorRT cannot start: no GPU or no driver was found ({why(logger)})",
        hint="check `nvidia-smi`: TensorRT for CUDA 13 needs driver r580 or newer",
    )


def _typed(trt: Any, engine: Any, specs: tuple[TensorSpec, ...], mode: str) -> tuple[TensorSpec, ...]:
    """Return the specs with the engine's element types. Raises BundleError when the engine has other tensors."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    wanted = getattr(trt.TensorIOMode, mode)
    found = {name for name in names if engine.get_tensor_mode(name) == wanted}
    if found != {spec.name for spec in specs}:
        raise BundleError(
            f"the engine's {mode.lower()}s are {', '.join(sorted(found)) or 'none'}, but the manifest has "
            + ", ".join(map(str, specs)),
            hint="build it again with `demi export --tensorrt BUNDLE`",
        )
    return tuple(TensorSpec(spec.name, _dtype(engine.get_tensor_dtype(spec.name)), spec.shape) for spec in specs)


def _dtype(kind: Any) -> DType:
    if kind.name not in DTYPES:
        raise InferenceError(f"engines with tensors of type {kind.name} are not supported")
    return DTYPES[kind.name]
