"""A fake TensorRT whose engines are ONNX models run by ONNX Runtime, on the device memory of a FakeCudart.

It has the names that Demi uses and no others, refuses what TensorRT refuses, and forgets what TensorRT forgets: an
engine knows no names of axes, an output's size may be unknown before the run, a builder says None where it fails.
"""

from __future__ import annotations

import ctypes
import enum
import json
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.onnxruntime.binding import Bindable, Binder
from demi.runtime.onnxruntime.session import OrtSession, open_session
from demi.tensors import DType, TensorSpec
from tests.fake_cuda import FakeCudart, is_inside

HEADER = struct.pack("<II", 0x74727466, 0) + bytes(16)
TYPES = {DType.FP32: "FLOAT", DType.FP16: "HALF", DType.BF16: "BF16", DType.INT64: "INT64", DType.BOOL: "BOOL"}


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class ILogger:
    Severity = Severity


class IProgressMonitor:
    pass


class IOutputAllocator:
    pass


class IProfiler:
    pass


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT64, BOOL, FP8 = range(6)


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = range(2)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class Flag(enum.IntEnum):
    STRONGLY_TYPED = 1
    TF32 = 7
    VERSION_COMPATIBLE = 12
    EXCLUDE_LEAN_RUNTIME = 14


class FakeTrt:
    """The `tensorrt` module of a machine. The parser refuses the operator `unsupported`; `fails` are the failing calls."""

    ILogger, IProgressMonitor, IOutputAllocator, IProfiler = ILogger, IProgressMonitor, IOutputAllocator, IProfiler
    TensorIOMode, TensorLocation = TensorIOMode, TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    NetworkDefinitionCreationFlag = BuilderFlag = Flag
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    HardwareCompatibilityLevel = SimpleNamespace(NONE="none", AMPERE_PLUS="ampere", SAME_COMPUTE_CAPABILITY="same")
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(
        self, cudart: FakeCudart, *, version: str = "11.4.0.106", unsupported: str = "", fails: Sequence[str] = ()
    ) -> None:
        self.cudart, self.__version__, self.unsupported, self.fails = cudart, version, unsupported, tuple(fails)
        self.configs: list[FakeConfig] = []
        self.loggers: set[int] = set()
        self.plugins = 0

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        self.plugins += 1
        return self.writes_to(logger)

    def writes_to(self, logger: Any) -> bool:
        """TensorRT writes to the first logger that it got, whatever it is given later."""
        self.loggers.add(id(logger))
        assert len(self.loggers) == 1, "the log of this process is another one"
        return True

    def Builder(self, logger: Any) -> FakeBuilder:  # noqa: N802
        self.need_gpu()
        self.writes_to(logger)
        return FakeBuilder(self, logger)

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        self.need_gpu()
        self.writes_to(logger)
        return SimpleNamespace(
            deserialize_cuda_engine=lambda plan: self.load(bytes(plan), logger),
            load_runtime=lambda path: self.lean(path, logger),
        )

    def lean(self, path: str, logger: Any) -> Any:
        """Return the runtime of another version, whose library is a file that holds that version."""
        version = Path(path).read_text()
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self.load(bytes(plan), logger, version))

    def OnnxParser(self, network: FakeNetwork, logger: Any) -> FakeParser:  # noqa: N802
        assert self.plugins == 1, "some operators are plugins"
        return FakeParser(self, network)

    def need_gpu(self) -> None:
        if not self.cudart.gpus:
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def load(self, plan: bytes, logger: Any, version: str = "") -> FakeEngine | None:
        if plan[:24] != HEADER or plan[24:28] != version_bytes(version or self.__version__):
            logger.log(Severity.ERROR, "the engine plan file is not compatible with this version of TensorRT")
            return None
        length = struct.unpack_from("<I", plan, 28)[0]
        return FakeEngine(self, json.loads(plan[32 : 32 + length]), plan[32 + length :], logger)


def version_bytes(version: str) -> bytes:
    """Return a version as its bytes in an engine."""
    return bytes(int(part) for part in version.split(".")[:4])


class FakeNetwork:
    def __init__(self, flags: int) -> None:
        assert flags == 1 << Flag.STRONGLY_TYPED, "weakly typed networks take FP32 islands for hints"
        self.model = b""
        self.inputs: list[Any] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Any:
        return self.inputs[index]


class FakeParser:
    def __init__(self, trt: FakeTrt, network: FakeNetwork) -> None:
        self._trt, self._network, self._errors = trt, network, []

    def parse_from_file(self, path: str) -> bool:
        assert isinstance(path, str)
        model = onnx.load(path)
        self._errors = [node for node in model.graph.node if node.op_type == self._trt.unsupported]
        self._network.model = model.SerializeToString()
        self._network.inputs = [
            SimpleNamespace(name=value.name, is_shape_tensor=value.name.startswith("shape"))
            for value in model.graph.input
        ]
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        node = self._errors[index]
        return SimpleNamespace(
            desc=lambda: "No importer registered", node_name=lambda: node.name, node_operator=lambda: node.op_type
        )


class FakeCache:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def serialize(self) -> bytes:
        return b"measured;" + self.blob


class FakeConfig:
    __slots__ = (
        "builder_optimization_level",
        "cache",
        "cleared",
        "flags",
        "hardware_compatibility_level",
        "limits",
        "profiles",
        "profiling_verbosity",
        "progress_monitor",
    )

    def __init__(self) -> None:
        self.cleared: list[Any] = []
        self.flags: list[Any] = []
        self.limits: dict[str, int] = {}
        self.profiles: list[FakeProfile] = []
        self.cache: FakeCache | None = None
        self.progress_monitor: Any = None

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.limits[pool] = size

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag)

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag)

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, blob: bytes) -> FakeCache:
        return FakeCache(blob)

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.blob and not cache.blob.startswith(b"measured;"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> FakeCache:
        assert self.cache is not None
        return self.cache


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = [list(low), list(best), list(high)]


class FakeBuilder:
    def __init__(self, trt: FakeTrt, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def create_network(self, flags: int) -> FakeNetwork:
        return FakeNetwork(flags)

    def create_builder_config(self) -> FakeConfig:
        self._trt.configs.append(FakeConfig())
        return self._trt.configs[-1]

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile()

    def build_serialized_network(self, network: FakeNetwork, config: FakeConfig) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 4)
        for step in range(4):
            if not monitor.step_complete("Building", step):
                return None
        monitor.phase_finish("Building")
        if "build" in self._trt.fails:
            self._logger.log(Severity.ERROR, "could not find any implementation for node")
            return None
        profile = json.dumps(config.profiles[0].shapes).encode()
        return HEADER + version_bytes(self._trt.__version__) + struct.pack("<I", len(profile)) + profile + network.model


class FakeEngine:
    device_memory_size_v2 = 1 << 20

    def __init__(self, trt: FakeTrt, profile: dict[str, Any], model: bytes, logger: Any) -> None:
        self._trt, self._profile = trt, profile
        self.session = session = bound_session(model)
        self.graph = onnx.load_from_string(model).graph
        self._specs: dict[str, tuple[TensorIOMode, TensorSpec]] = {
            spec.name: (mode, spec)
            for mode, specs in ((TensorIOMode.INPUT, session.inputs), (TensorIOMode.OUTPUT, session.outputs))
            for spec in specs
        }
        self.logger = logger

    @property
    def milliseconds(self) -> float:
        """Return the time of a run: twice as long if no weight is half."""
        return 0.5 if any(each.data_type == onnx.TensorProto.FLOAT16 for each in self.graph.initializer) else 1.0

    @property
    def num_io_tensors(self) -> int:
        return len(self._specs)

    def get_tensor_name(self, index: int) -> str:
        return list(self._specs)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._specs[name][0]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[TYPES.get(self._specs[name][1].dtype, "FP8")]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name.startswith("host") else TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self._specs[name][1].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert -1 in self.get_tensor_shape(name), "profiles know of shapes that are free"
        return [tuple(shape) for shape in self._profile[name]]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> FakeContext | None:
        if "context" in self._trt.fails:
            self.logger.log(Severity.ERROR, "out of memory")
            return None
        return FakeContext(self._trt, self, strategy is ExecutionContextAllocationStrategy.USER_MANAGED)

    def create_engine_inspector(self) -> Any:
        return FakeInspector(self)


class FakeInspector:
    __slots__ = ("_engine", "execution_context")

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def get_engine_information(self, layout: str) -> str:
        assert isinstance(self.execution_context, FakeContext)
        nodes = "\x1e".join(f"[ONNX Layer: {node.name}]" for node in self._engine.graph.node)
        layer = {"Name": "everything", "LayerType": "kgen", "Metadata": nodes}
        return json.dumps({"Layers": [layer], "I/O Tensors": []})


class FakeContext:
    __slots__ = ("_addresses", "_allocators", "_changes", "_engine", "_needs_memory", "_shapes", "_trt", "profiler")

    def __init__(self, trt: FakeTrt, engine: FakeEngine, needs_memory: bool = False) -> None:
        self._trt, self._engine = trt, engine
        self._needs_memory, self._changes = needs_memory, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self.profiler: Any = None

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._needs_memory, "only for contexts without memory of their own"
        assert size >= self._engine.device_memory_size_v2
        assert is_inside(self._trt.cudart.device, memory, size)
        self._needs_memory = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._changes += 1
        free = -1 in self._engine.get_tensor_shape(name)
        low, _, high = (
            self._engine.get_tensor_profile_shape(name, 0) if free else [self._engine.get_tensor_shape(name)] * 3
        )
        fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if fits:
            self._shapes[name] = shape
        else:
            self._engine.logger.log(Severity.ERROR, "IExecutionContext::setInputShape: API Usage Error")
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._changes += 1
        self._addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self._allocators[name] = allocator
        return True

    def infer_shapes(self) -> list[str]:
        if "shapes" in self._trt.fails:
            self._engine.logger.log(Severity.ERROR, "dimensions not compatible for Add")
            raise RuntimeError("infer_shapes error code: -1")
        return [spec.name for spec in self._engine.session.inputs if spec.name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[Any, int] = {}
        for spec in self._engine.session.inputs:
            sizes |= dict(zip(spec.shape, self._shapes[spec.name], strict=True))
        spec = self._engine._specs[name][1]
        return tuple(dim if isinstance(dim, int) else sizes.get(dim, -1) for dim in spec.shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert not self._needs_memory
        if "run" in self._trt.fails or ("capture" in self._trt.fails and stream in self._trt.cudart.recording):
            self._engine.logger.log(Severity.ERROR, "CUDA error in the engine")
            return False
        addresses, shapes, allocators = dict(self._addresses), dict(self._shapes), dict(self._allocators)
        changes = self._changes if stream in self._trt.cudart.recording else None
        self._trt.cudart.put(stream, lambda: self._compute(addresses, shapes, allocators, stream, changes))
        if allocators:  # sizes that depend on the data are known during the run; the fake computes them at once
            self._trt.cudart.cudaStreamSynchronize(stream)
        if self.profiler is not None:
            self.profiler.report_layer_time("everything", self._engine.milliseconds)
        return True

    def _compute(
        self,
        addresses: dict[str, int],
        shapes: dict[str, tuple[int, ...]],
        allocators: dict[str, Any],
        stream: int,
        changes: int | None,
    ) -> None:
        assert changes in (None, self._changes), "a graph must not run after its context was changed"
        feeds = {
            spec.name: _read(addresses[spec.name], shapes[spec.name], spec) for spec in self._engine.session.inputs
        }
        for name, array in self._engine.session.run(feeds).items():
            if name in allocators:
                addresses[name] = allocators[name].reallocate_output_async(name, 0, array.nbytes, 256, stream)
                allocators[name].notify_shape(name, array.shape)
            self._check(name, addresses[name], array.nbytes)
            ctypes.memmove(addresses[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)

    def _check(self, name: str, address: int, size: int) -> None:
        on_host = self._engine.get_tensor_location(name) is TensorLocation.HOST
        memory = self._trt.cudart.pinned if on_host else self._trt.cudart.device
        assert is_inside(memory, address, size)


def bound_session(model: bytes) -> OrtSession:
    """Return a CPU session whose tensors are bound by address, so that bfloat16 is possible."""
    cudart = FakeCudart()
    cudart.foreign_device_memory = True
    session = open_session(model)
    options = onnxruntime.RunOptions()
    bindable = Bindable(session._session, session.inputs, session.outputs, lambda _: options, ("cpu", 0))
    session.bind(Binder(bindable, Cuda(Device("cuda"), cudart)))
    return session


def _read(address: int, shape: tuple[int, ...], spec: TensorSpec) -> np.ndarray[Any, Any]:
    size = int(np.prod(shape, dtype=np.int64)) * spec.dtype.numpy.itemsize
    return np.frombuffer(ctypes.string_at(address, size), spec.dtype.numpy).reshape(shape)


def install(monkeypatch: Any, trt: FakeTrt) -> FakeTrt:
    """Install this TensorRT, and the GPUs of its CUDA runtime."""
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=trt.cudart))
    return trt


def serialized_engine(trt: FakeTrt, model: bytes, shapes: dict[str, Any], folder: Path) -> bytes:
    """Return an engine's bytes as a builder would make them."""
    (folder / "m.onnx").write_bytes(model)
    builder = FakeBuilder(trt, None)
    network, config = builder.create_network(1 << Flag.STRONGLY_TYPED), builder.create_builder_config()
    FakeParser(trt, network).parse_from_file(str(folder / "m.onnx"))
    config.progress_monitor = SimpleNamespace(
        phase_start=lambda *_: None, step_complete=lambda *_: True, phase_finish=lambda *_: None
    )
    profile = builder.create_optimization_profile()
    for name, ranges in shapes.items():
        profile.set_shape(name, *ranges)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return plan
