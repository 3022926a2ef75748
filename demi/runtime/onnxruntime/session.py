"""ONNX Runtime: the only module that imports it.

A CUDA session here never falls back to the CPU in silence. ONNX Runtime does so in three ways: the provider's library
does not load (creation succeeds on the CPU), the provider's creation raises (Python retries on the CPU), and a kernel
fails at run time (the session is rebuilt on the CPU). `enable_fallback=0` stops the last two; the first is found by
asking the session for its providers. What a GPU session leaves to the CPU all the same is named by `nodes_on_cpu`, and
what of that is no work on shapes by `strays`.
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
from demi.runtime.cuda.captures import RECORDINGS
from demi.runtime.cuda.failures import ROOM_HINT, first_line, lacks_room
from demi.runtime.onnxruntime.bfloat16 import has_bits, run_bits
from demi.runtime.onnxruntime.binding import Binder, can_bind
from demi.runtime.onnxruntime.cuda_graphs import GraphBinder
from demi.runtime.onnxruntime.cuda_session import can_replay_right, make_binder, no_cuda, require_gpu
from demi.runtime.onnxruntime.optimizers import left_out
from demi.runtime.onnxruntime.shape_nodes import shape_nodes
from demi.runtime.onnxruntime.termination import Runs, failure_of
from demi.runtime.options import SessionSettings as SessionSettings
from demi.runtime.options import cuda_options
from demi.tensors import Array, DType, Feeds, TensorSpec

log = logging.getLogger("demi.runtime")

NO_KERNEL = "on the CPU it has no kernel for this operator and type; it has hardly any for bfloat16: export in FP32"

NO_OPERATOR = "it holds an operator of another runtime: run it where that is, in TensorRT with its plugin, say"

_NOTHING = contextlib.nullcontext()

HOST = frozenset({"Cpu", "CudaPinned"})
"""ONNX Runtime's names of memory on the host."""


def require_runtime(find: Any = importlib.metadata.distribution) -> Any:
    """The onnxruntime module; PackageError when it is missing or installed twice."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", "cpu") from error
    if both := installed_twice(find):
        raise PackageError(
            f"both {both[0]} and {both[1]} are installed: they share one import folder, and each breaks the other",
            hint="pip uninstall -y onnxruntime onnxruntime-gpu, then install 'demi-inference[gpu]' or 'demi-inference[cpu]'",
        )
    return onnxruntime


def installed_twice(find: Any = importlib.metadata.distribution) -> tuple[str, str] | None:
    """The two ONNX Runtime packages when both are installed into one folder; in two, the first on the path hides the other."""
    folders = {}
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            folders[package] = Path(find(package).locate_file("onnxruntime")).resolve()
    cpu, gpu = (folders.get(package) for package in ("onnxruntime", "onnxruntime-gpu"))
    return ("onnxruntime", "onnxruntime-gpu") if cpu is not None and cpu == gpu else None


class OrtSession:
    """An ONNX Runtime session: a Session whose tensors are checked by the runtime itself.

    With a binder, its tensors are bound to device memory instead, and `stage` sends a batch's inputs ahead.
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
        """Let go of the runtime's session where that is allowed: on a thread that is no part of another's recording."""
        binder, self._binder = getattr(self, "_binder", None), None
        if binder is None:
            return
        with RECORDINGS.apart(), contextlib.suppress(DemiError):
            binder.cuda.use()
            del binder
            self._session = None

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

    def bind(self, binder: Binder | GraphBinder) -> None:
        """Run through this binder from now on."""
        self._binder = binder

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        """The outputs for one set of inputs; InferenceError with the runtime's own words when it fails."""
        return self.stage(feeds)(outputs)

    def stage(self, feeds: Feeds) -> Ready:
        """Send the inputs to the device, where there is a binder; what runs the model on them, once."""
        return self._binder.stage(feeds) if self._binder else functools.partial(self._run, feeds)

    def _run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        names = list(outputs) if outputs is not None else self._output_names
        # No binder has told CUDA that this thread minds no recording but its own.
        apart = RECORDINGS.apart() if self._device.kind == "cuda" else contextlib.nullcontext()
        options = self._run_options()
        try:
            with apart, self._first_run(), self._runs.under_way(options):
                values = self._values(names, feeds, options)
        except Exception as error:
            raise failure_of(options, f"ONNX Runtime failed: {first_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def stop(self) -> None:
        """Let the runs that are under way end early, with StoppedError; from any thread."""
        self._runs.stop()

    def _first_run(self) -> contextlib.AbstractContextManager[None]:
        """What notes that the model runs for the first time; nothing later on."""
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
        """Names of the nodes a CUDA session runs on the CPU, or their operators; empty for a CPU session."""
        return [node.name or node.op_type for provider, node in self._placed() if provider.startswith("CPU")]

    def strays(self, model: Path | bytes) -> list[str]:
        """Those of them that compute with more than shapes, which lie there anyway; `model` is what was opened."""
        if not (on_cpu := self.nodes_on_cpu()):
            return []
        expected = shape_nodes(
            model, {node.name for provider, node in self._placed() if not provider.startswith("CPU")}
        )
        return [name for name in on_cpu if name not in expected]

    def inputs_on_host(self) -> list[str]:
        """The inputs that the runtime reads in the host's memory, for a shape say: binding one copies it there, once."""
        places = self._session.get_input_memory_infos()
        return [spec.name for spec, place in zip(self._inputs, places, strict=True) if place.name in HOST]

    def operators(self) -> set[str]:
        """The operators that a CUDA session runs, wherever; empty for a CPU session."""
        return {node.op_type for _, node in self._placed()}

    def _placed(self) -> Iterator[tuple[str, Any]]:
        """Every node of a CUDA session with the provider that runs it; nothing for a CPU session."""
        if self._device.kind != "cpu":
            for group in self._session.get_provider_graph_assignment_info():
                yield from ((group.ep_name, node) for node in group.get_nodes())

    def end_profile(self) -> Path:
        """Stop profiling; the file with the time of every node, for a session made with `profile`."""
        return Path(self._session.end_profiling())


def open_session(model: Path | bytes, device: Device = CPU, settings: SessionSettings | None = None) -> OrtSession:
    """A session for an ONNX file or a serialized model.

    Raises SourceError when ONNX Runtime cannot load the model, and DeviceError when the wanted device cannot be used,
    or with `strict_device` when any node would run elsewhere, but for work on shapes.
    """
    settings = settings or SessionSettings()
    ort = require_runtime()
    if device.kind == "cpu":
        return OrtSession(_create(ort, model, device, settings), device, ort.RunOptions)
    cuda = require_gpu(ort, device)
    if settings.graph_rows and (cuda is None or not can_replay_right(ort)):
        settings = replace(settings, graph_rows=0)  # which need fixed addresses
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
    with RECORDINGS.apart():
        inner = _create(ort, model, device, settings)
    if inner.get_providers()[0] != "CUDAExecutionProvider":
        missing = ", ".join(missing_libraries()) or "see ONNX Runtime's log above"
        raise no_cuda(device, f"the CUDA provider's library did not load: {missing}")
    runs = Runs()
    session = OrtSession(inner, device, ort.RunOptions, runs)
    if settings.graph_rows and (read := session.inputs_on_host()):
        log.warning("no CUDA graphs for this model: `%s` is read in the host's memory, where no replay looks", read[0])
        with RECORDINGS.apart():
            del session, inner
        return _open_on_gpu(ort, model, device, replace(settings, graph_rows=0), cuda)
    if lacks_cudnn(session.operators()):
        raise no_cuda(device, "the model convolves or recurs, which needs cuDNN: libcudnn.so.9 (nvidia-cudnn-cu13)")
    if settings.strict_device and (stray := session.strays(model)):
        raise DeviceError(
            f"{len(stray)} nodes would run on the CPU beside {device}: {', '.join(stray[:5])}",
            where=_where(model),
            hint="leave --strict-device out to let them, or export the model without these operators",
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
                disabled_optimizers=left_out(model, device),
            )
    except Exception as error:
        if device.kind == "cuda" and lacks_room(str(error)):
            raise DeviceError(f"no room for the model on {device}: {first_line(error)}", hint=ROOM_HINT) from error
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
    """Let the runtime write why a provider does not load, and not what it found of the machine: for logs of records."""
    require_runtime().set_default_logger_severity(3)


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
    # What goes wrong is raised with the same words, and judged there. The runtime's own lines would look like our errors,
    # and the names in them, which are whatever a model's maker liked, could forge lines and command a terminal.
    options.log_severity_level = 4
    options.intra_op_num_threads = settings.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spin else "0")
    if settings.faithful:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
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
            f"`{node.name}` is a {node.type}; only tensors can be a model's inputs and outputs here"
        ) from error
    return TensorSpec(node.name, dtype, tuple(node.shape))


def _where(model: Path | bytes) -> str | None:
    return str(model) if isinstance(model, Path) else None


def empty_feeds(specs: Sequence[TensorSpec], free: int = 1) -> Feeds:
    """Zeros for every input, each free axis of size `free`: enough to see that a model runs."""
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else free for dim in spec.shape], spec.dtype.numpy)
        for spec in specs
    }
