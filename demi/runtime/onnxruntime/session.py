"""Sessions of ONNX Runtime. The only module that imports it.

A CUDA session never falls back to the CPU silently. ONNX Runtime does so in three ways: the provider's library does not
load (the session is created on the CPU), creating the provider raises (Python retries on the CPU), and a kernel fails at
run time (the session is rebuilt on the CPU). `enable_fallback=0` disables the last two; the first is detected by asking
the session for its providers. `nodes_on_cpu` names the nodes that a GPU session still runs on the CPU, and
`unexpected_on_cpu` those among them that compute with more than shapes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from demi.errors import (
    DemiError,
    DeviceError,
    PackageError,
    SourceError,
    TensorError,
    missing_package,
)
from demi.processes.crash import native_limit_s
from demi.processes.recorder import doing
from demi.runtime.base import CPU, Device, Ready
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.capability import lacks_cudnn, missing_libraries
from demi.runtime.cuda.capture_lock import CAPTURE_LOCK
from demi.runtime.cuda.failures import OUT_OF_MEMORY_HINT, first_line, is_out_of_memory
from demi.runtime.onnxruntime.bfloat16 import has_bits, run_bits
from demi.runtime.onnxruntime.binding import Binder, can_bind
from demi.runtime.onnxruntime.cuda_graphs import GraphBinder
from demi.runtime.onnxruntime.cuda_session import can_replay_right, make_binder, no_cuda, require_gpu
from demi.runtime.onnxruntime.disabled_optimizers import disabled_optimizers
from demi.runtime.onnxruntime.shape_nodes import shape_nodes
from demi.runtime.onnxruntime.termination import Runs, failure_of
from demi.runtime.options import SessionSettings as SessionSettings
from demi.runtime.options import cuda_options
from demi.tensors import Array, DType, Feeds, TensorSpec

log = logging.getLogger("demi.runtime")

NO_KERNEL = "it has no CPU kernel for this operator and type, and hardly any for bfloat16: export the model in FP32"

NO_OPERATOR = "the model holds an operator of another runtime: run it there, for example in TensorRT with its plugin"

_NOTHING = contextlib.nullcontext()

HOST = frozenset({"Cpu", "CudaPinned"})
"""ONNX Runtime's names for host memory."""


def require_runtime(find: Any = importlib.metadata.distribution) -> Any:
    """Import onnxruntime. Raises PackageError when it is missing or installed twice."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", "cpu") from error
    if both := installed_twice(find):
        raise PackageError(
            f"{both[0]} and {both[1]} are both installed, share one import folder, and break each other",
            hint="pip uninstall -y onnxruntime onnxruntime-gpu, then install 'demi-inference[gpu]' or 'demi-inference[cpu]'",
        )
    return onnxruntime


def installed_twice(find: Any = importlib.metadata.distribution) -> tuple[str, str] | None:
    """Return both ONNX Runtime packages if they share a folder; in separate folders, the first on the path hides the other."""
    folders = {}
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            folders[package] = Path(find(package).locate_file("onnxruntime")).resolve()
    cpu, gpu = (folders.get(package) for package in ("onnxruntime", "onnxruntime-gpu"))
    return ("onnxruntime", "onnxruntime-gpu") if cpu is not None and cpu == gpu else None


class OrtSession:
    """An ONNX Runtime session; the runtime checks the tensors.

    With a binder, tensors are bound to device memory, and `stage` copies a batch's inputs ahead of its run.
    """

    def __init__(self, session: Any, device: Device, run_options: Callable[[], Any], runs: Runs | None = None) -> None:
        self._session = session
        self._run_options = run_options
        self._runs = runs or Runs()
        self._device = device
        self._inputs = tuple(_spec(node) for node in session.get_inputs())
        self._outputs = tuple(_spec(node) for node in session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]
        self._has_bits = has_bits((*self._inputs, *self._outputs))
        self._binder: Binder | GraphBinder | None = None
        self._has_run = False

    def __del__(self) -> None:
        """Destroy the runtime's session when no other thread captures a CUDA graph."""
        binder, self._binder = getattr(self, "_binder", None), None
        if binder is None:
            return
        with CAPTURE_LOCK.changing_sessions(), contextlib.suppress(DemiError):
            binder.cuda.use()
            del binder
            self._session = None

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
        return self._device

    def bind(self, binder: Binder | GraphBinder) -> None:
        """Use this binder for all further runs."""
        self._binder = binder

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        """Run the model and return its outputs. Raises InferenceError with the runtime's message."""
        return self.stage(feeds)(outputs)

    def stage(self, feeds: Feeds) -> Ready:
        """Copy the inputs to the device, if there is a binder, and return the run."""
        return self._binder.stage(feeds) if self._binder else functools.partial(self._run, feeds)

    def _run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        names = list(outputs) if outputs is not None else self._output_names
        if not names:
            return {}  # for ONNX Runtime, an empty list stands for all
        # Without a binder, this thread is not exempt from other threads' graph captures (see `Cuda.use`).
        apart = CAPTURE_LOCK.changing_sessions() if self._device.kind == "cuda" else contextlib.nullcontext()
        options = self._run_options()
        try:
            with apart, self._first_run(), self._runs.under_way(options):
                values = self._values(names, feeds, options)
        except Exception as error:
            raise failure_of(options, f"ONNX Runtime failed: {first_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def stop(self) -> None:
        """Stop the current runs, which then raise StoppedError. Thread-safe."""
        self._runs.stop()

    def _first_run(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that records the first run of the model for the supervisor; empty for later runs."""
        if self._has_run:
            return _NOTHING
        self._has_run = True
        return doing("running a model in ONNX Runtime for the first time", native_limit_s())

    def _values(self, names: list[str], feeds: Feeds, options: Any) -> list[Array]:
        if self._has_bits:
            return run_bits(require_runtime(), self._session, self._inputs, feeds, names, options)
        values: list[Array] = self._session.run(names, feeds, options)
        return values

    def nodes_on_cpu(self) -> list[str]:
        """Return the nodes that a CUDA session runs on the CPU, by name or operator; empty for a CPU session."""
        return [node.name or node.op_type for provider, node in self._placed() if provider.startswith("CPU")]

    def unexpected_on_cpu(self, model: Path | bytes) -> list[str]:
        """Return the nodes on the CPU that compute with more than shapes, which belong there; `model` is what was opened."""
        if not (on_cpu := self.nodes_on_cpu()):
            return []
        expected = shape_nodes(
            model, {node.name for provider, node in self._placed() if not provider.startswith("CPU")}
        )
        return [name for name in on_cpu if name not in expected]

    def inputs_on_host(self) -> list[str]:
        """Return the inputs that the runtime reads in host memory (shapes, say): binding one copies it there only once."""
        places = self._session.get_input_memory_infos()
        return [spec.name for spec, place in zip(self._inputs, places, strict=True) if place.name in HOST]

    def operators(self) -> set[str]:
        """Return all operators of a CUDA session, on any device; empty for a CPU session."""
        return {node.op_type for _, node in self._placed()}

    def _placed(self) -> Iterator[tuple[str, Any]]:
        """Yield every node of a CUDA session with the provider that runs it; none for a CPU session."""
        if self._device.kind != "cpu":
            for group in self._session.get_provider_graph_assignment_info():
                yield from ((group.ep_name, node) for node in group.get_nodes())

    def end_profile(self) -> Path:
        """Stop profiling and return the file with the time of every node, for a session opened with `profile`."""
        return Path(self._session.end_profiling())


def open_session(model: Path | bytes, device: Device = CPU, settings: SessionSettings | None = None) -> OrtSession:
    """Open a session for an ONNX file or a serialized model.

    Raises SourceError when ONNX Runtime cannot load the model, and DeviceError when the device cannot be used or, with
    `strict_device`, when a node that computes with more than shapes would run elsewhere.
    """
    settings = settings or SessionSettings()
    ort = require_runtime()
    if device.kind == "cpu":
        return OrtSession(_create(ort, model, device, settings), device, ort.RunOptions)
    cuda = require_gpu(ort, device)
    if settings.graph_rows and (cuda is None or not can_replay_right(ort)):
        settings = replace(settings, graph_rows=0)  # CUDA graphs need bound addresses
    try:
        return _open_on_gpu(ort, model, device, settings, cuda)
    except SourceError as error:
        if not (settings.graph_rows and "graph capture" in error.message):
            raise
        log.warning("no CUDA graphs for this model: %s", error.message)
        return _open_on_gpu(ort, model, device, replace(settings, graph_rows=0), cuda)


def _open_on_gpu(
    ort: Any, model: Path | bytes, device: Device, settings: SessionSettings, cuda: Cuda | None
) -> OrtSession:
    with CAPTURE_LOCK.changing_sessions():
        inner = _create(ort, model, device, settings)
    if inner.get_providers()[0] != "CUDAExecutionProvider":
        missing = ", ".join(missing_libraries()) or "see ONNX Runtime's log above"
        raise no_cuda(device, f"the CUDA provider could not be loaded: {missing}")
    runs = Runs()
    session = OrtSession(inner, device, ort.RunOptions, runs)
    if settings.graph_rows and (read := session.inputs_on_host()):
        log.warning("no CUDA graphs for this model: input `%s` is read in host memory, which a replay skips", read[0])
        with CAPTURE_LOCK.changing_sessions():
            del session, inner
        return _open_on_gpu(ort, model, device, replace(settings, graph_rows=0), cuda)
    if lacks_cudnn(session.operators()):
        raise no_cuda(
            device, "convolutions and recurrent layers need cuDNN, which is missing: libcudnn.so.9 (nvidia-cudnn-cu13)"
        )
    if settings.strict_device and (nodes := session.unexpected_on_cpu(model)):
        raise DeviceError(
            f"{len(nodes)} nodes would run on the CPU beside {device}: {', '.join(nodes[:5])}",
            where=_where(model),
            hint="remove --strict-device to allow it, or export the model without these operators",
        )
    if cuda is not None and can_bind((*session.inputs, *session.outputs)):
        session.bind(make_binder(ort, inner, session.inputs, session.outputs, cuda, settings, runs))
    return session


def _create(ort: Any, model: Path | bytes, device: Device, settings: SessionSettings) -> Any:
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.kind == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", cuda_options(device, settings)))
    source = str(model) if isinstance(model, Path) else model
    what = f"opening {f'`{model.name}`' if isinstance(model, Path) else 'a model'} in ONNX Runtime"
    try:
        with doing(what, native_limit_s()):
            return ort.InferenceSession(
                source,
                _options(ort, device, settings),
                providers=providers,
                enable_fallback=0,
                disabled_optimizers=disabled_optimizers(model, device),
            )
    except Exception as error:
        if device.kind == "cuda" and is_out_of_memory(str(error)):
            raise DeviceError(
                f"out of memory on {device} while loading the model: {first_line(error)}", hint=OUT_OF_MEMORY_HINT
            ) from error
        if device.kind == "cuda" and "CUDA" in str(error) and "graph capture" not in str(error):
            raise no_cuda(device, first_line(error)) from error
        raise SourceError(
            f"ONNX Runtime cannot load the model: {first_line(error)}",
            where=_where(model),
            hint=_hint(str(error), device),
        ) from error


def _hint(why: str, device: Device) -> str | None:
    if "is not a registered function/op" in why or "No Op registered" in why:
        return NO_OPERATOR
    return NO_KERNEL if device.kind == "cpu" and "NOT_IMPLEMENTED" in why else None


def log_errors_only() -> None:
    """Restrict ONNX Runtime's own log to errors, such as why a provider does not load, for structured logs."""
    require_runtime().set_default_logger_severity(3)


def runtime_version() -> str:
    """Return the version of the installed ONNX Runtime."""
    return str(require_runtime().__version__)


def providers() -> tuple[str, ...]:
    """Return the execution providers of the installed ONNX Runtime, without their common suffix: `CUDA`, `CPU`."""
    return tuple(name.removesuffix("ExecutionProvider") for name in require_runtime().get_available_providers())


def operator_schemas() -> Sequence[Any]:
    """Return the schemas of all operators of the runtime, including its own domains.

    Each has name, domain, since_version, inputs, outputs and type_constraints, like those of `onnx.defs`.
    """
    require_runtime()
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    schemas: Sequence[Any] = native.get_all_operator_schema()
    return schemas


def _options(ort: Any, device: Device, settings: SessionSettings) -> Any:
    options = ort.SessionOptions()
    # Errors are raised with the same text. The runtime's own log lines would look like our errors, and names in them,
    # which are untrusted, could forge lines or control a terminal.
    options.log_severity_level = 4
    options.intra_op_num_threads = settings.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spin else "0")
    if settings.faithful:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if settings.as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if settings.profile:
        options.enable_profiling = True
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # nodes keep their names
        options.profile_file_prefix = settings.profile
    if device.kind == "cuda":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _spec(node: Any) -> TensorSpec:
    try:
        dtype = DType.parse(node.type)
    except Exception as error:
        raise TensorError(
            f"`{node.name}` is a {node.type}, but a model's inputs and outputs must be tensors"
        ) from error
    return TensorSpec(node.name, dtype, tuple(node.shape))


def _where(model: Path | bytes) -> str | None:
    return str(model) if isinstance(model, Path) else None


def empty_feeds(specs: Sequence[TensorSpec], free: int = 1) -> Feeds:
    """Return zeros for every input, with free axes of size `free`, to try whether a model runs."""
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else free for dim in spec.shape], spec.dtype.numpy)
        for spec in specs
    }
