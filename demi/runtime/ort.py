"""ONNX Runtime: the only module that imports it.

A CUDA session here never falls back to the CPU in silence. ONNX Runtime does so in three ways: the provider's library
does not load (creation succeeds on the CPU), the provider's creation raises (Python retries on the CPU), and a kernel
fails at run time (the session is rebuilt on the CPU). `enable_fallback=0` stops the last two; the first is found by
asking the session for its providers.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demi.errors import DeviceError, InferenceError, PackageError, SourceError, TensorError, missing_package
from demi.runtime.base import CPU, Device
from demi.tensors import DType, Feeds, TensorSpec


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session is made.

    `faithful` keeps every rounding that the graph spells out: ONNX Runtime's basic optimizations only, since fusions
    and layout changes alter the order of summation. `threads` 0 means one per core. `spin` lets idle threads spin,
    which is a little faster for one request and burns a core for an idle server.
    """

    threads: int = 0
    spin: bool = False
    faithful: bool = False
    strict_device: bool = False


def require_runtime(version_of: Any = importlib.metadata.version) -> Any:
    """The onnxruntime module; PackageError when it is missing or installed twice."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", "cpu") from error
    if both := installed_twice(version_of):
        raise PackageError(
            f"both {both[0]} and {both[1]} are installed: they share one import folder, and each breaks the other",
            hint="pip uninstall -y onnxruntime onnxruntime-gpu, then install 'demi-inference[gpu]' or 'demi-inference[cpu]'",
        )
    return onnxruntime


def installed_twice(version_of: Any = importlib.metadata.version) -> tuple[str, str] | None:
    """The two ONNX Runtime packages when both are installed."""
    found = []
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version_of(package)
            found.append(package)
    return (found[0], found[1]) if len(found) == 2 else None


class OrtSession:
    """An ONNX Runtime session: a Session whose tensors are checked by the runtime itself."""

    def __init__(self, session: Any, device: Device) -> None:
        self._session = session
        self._device = device
        self._inputs = tuple(_spec(node) for node in session.get_inputs())
        self._outputs = tuple(_spec(node) for node in session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs, in order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs, in order."""
        return self._outputs

    @property
    def device(self) -> Device:
        """Where it runs."""
        return self._device

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        """The outputs for one set of inputs; InferenceError with the runtime's own words when it fails."""
        names = list(outputs) if outputs is not None else self._output_names
        try:
            values = self._session.run(names, feeds)
        except Exception as error:
            raise InferenceError(f"ONNX Runtime failed: {_first_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def nodes_on_cpu(self) -> list[str]:
        """Names of the nodes a CUDA session runs on the CPU; empty for a CPU session."""
        if self._device.kind == "cpu":
            return []
        groups = self._session.get_provider_graph_assignment_info()
        return [
            node.name or node.op_type
            for group in groups
            if group.ep_name.startswith("CPU")
            for node in group.get_nodes()
        ]


def open_session(model: Path | bytes, device: Device = CPU, settings: SessionSettings | None = None) -> OrtSession:
    """A session for an ONNX file or a serialized model.

    Raises SourceError when ONNX Runtime cannot load the model, and DeviceError when the wanted device cannot be used.
    """
    settings = settings or SessionSettings()
    ort = require_runtime()
    providers = (
        [_cuda_provider(ort, device), "CPUExecutionProvider"] if device.kind == "cuda" else ["CPUExecutionProvider"]
    )
    if device.kind == "cuda" and settings.strict_device:
        providers = providers[:1]
    try:
        session = ort.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            _options(ort, device, settings),
            providers=providers,
            enable_fallback=0,
        )
    except Exception as error:
        if device.kind == "cuda" and "CUDA" in str(error):
            raise _no_cuda(device, _first_line(error)) from error
        where = str(model) if isinstance(model, Path) else None
        raise SourceError(f"ONNX Runtime cannot load the model: {_first_line(error)}", where=where) from error
    if device.kind == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise _no_cuda(device, "the CUDA provider's library did not load (see ONNX Runtime's log above)")
    return OrtSession(session, device)


def runtime_version() -> str:
    """The version of the installed ONNX Runtime."""
    return str(require_runtime().__version__)


def operator_schemas() -> Sequence[Any]:
    """The schemas of every operator the runtime knows, its own domains among them.

    Each has name, domain, since_version, inputs, outputs and type_constraints, as those of `onnx.defs`.
    """
    require_runtime()
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    schemas: Sequence[Any] = native.get_all_operator_schema()
    return schemas


def _options(ort: Any, device: Device, settings: SessionSettings) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = settings.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spin else "0")
    if settings.faithful:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if device.kind == "cuda":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if settings.strict_device:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _cuda_provider(ort: Any, device: Device) -> tuple[str, dict[str, str]]:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise DeviceError(
            f"`{device}` was asked for, but the installed ONNX Runtime is built without CUDA",
            hint="pip uninstall -y onnxruntime && pip install 'demi-inference[gpu]'; or use --device cpu",
        )
    if hasattr(ort, "preload_dlls"):
        # The provider has no path to the CUDA libraries that pip installs; preloading finds them.
        ort.preload_dlls()
    # TF32 keeps 10 bits of fraction, as few as half: the nodes a plan keeps in FP32 need real FP32.
    return "CUDAExecutionProvider", {
        "device_id": str(device.index),
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_skip_layer_norm_strict_mode": "1",
    }


def _no_cuda(device: Device, cause: str) -> DeviceError:
    return DeviceError(
        f"`{device}` cannot be used: {cause}",
        hint="check `nvidia-smi` (driver r580 or newer for CUDA 13) and install 'demi-inference[gpu]'; or use --device cpu",
    )


def _spec(node: Any) -> TensorSpec:
    try:
        dtype = DType.parse(node.type)
    except Exception as error:
        raise TensorError(
            f"`{node.name}` is a {node.type}; only tensors can be a model's inputs and outputs here"
        ) from error
    shape = tuple(
        dim if isinstance(dim, int) else dim or f"{node.name}_axis{axis}" for axis, dim in enumerate(node.shape)
    )
    return TensorSpec(node.name, dtype, shape)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.replace("[ONNXRuntimeError] : ", "")


def empty_feeds(specs: Sequence[TensorSpec], free: int = 1) -> Feeds:
    """Zeros for every input, each free axis of size `free`: enough to see that a model runs."""
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else free for dim in spec.shape], spec.dtype.numpy)
        for spec in specs
    }
