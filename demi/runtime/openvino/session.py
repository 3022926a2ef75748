"""OpenVINO: the only module that imports it.

Sessions of one compiled model share its weights, and as many of them run at the same time as it has streams.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from demi.errors import SourceError, missing_package
from demi.processes.crash import native_limit_s
from demi.processes.recorder import doing
from demi.runtime.base import CPU, Device, Ready
from demi.runtime.mapped_files import release_pages
from demi.runtime.openvino.compiled import Compiled, Run
from demi.runtime.openvino.executed import Executed, executed_layers
from demi.runtime.openvino.failures import reason
from demi.runtime.openvino.integers import integer_limits
from demi.runtime.openvino.options import OvSettings, cpu_options
from demi.runtime.openvino.shapes import ShapeCheck, Shapes
from demi.runtime.openvino.tables import check_ids, tables_of
from demi.runtime.openvino.values import LARGEST, check_integers, dtype_of, to_array, to_tensor
from demi.tensors import DType, Feeds, TensorSpec, check_feeds

Specs = tuple[TensorSpec, ...]

_NOTHING = contextlib.nullcontext()
_LOCK = threading.Lock()


def require_openvino() -> Any:
    """The openvino module; PackageError when it is missing."""
    try:
        import openvino
    except ImportError as error:
        raise missing_package("openvino", "openvino") from error
    return openvino


def openvino_version() -> str | None:
    """The version of the installed OpenVINO, such as `2026.4.1`; None where there is none."""
    try:
        import openvino
    except ImportError:
        return None
    return str(openvino.__version__).partition("-")[0]


@functools.cache
def capabilities() -> tuple[str, ...]:
    """Return the precisions that OpenVINO's CPU plugin reports for this machine: `FP32`, `FP16`, `BF16` and others."""
    return tuple(map(str, _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")))


class OvSession:
    """A model that OpenVINO has compiled: a Session. Safe to call from several threads; each run has a request of its own.

    Shapes carry the names of the model's free axes, which OpenVINO forgets; element types are those it compiled. `weights`
    is the file that it maps, whose pages are released after the first run; `limits` are the largest integers by input.
    """

    def __init__(
        self,
        ov: Any,
        compiled: Compiled,
        graph: Any,
        inputs: Specs,
        outputs: Specs,
        limits: Mapping[str, int],
        weights: Path | None = None,
    ) -> None:
        self._ov = ov
        self._compiled = compiled
        self._inputs, self._outputs = inputs, outputs
        self._sends = _in_order(compiled.model.inputs, inputs)
        self._reads = {spec.name: (index, spec) for index, spec in _in_order(compiled.model.outputs, outputs)}
        self._shapes = ShapeCheck(graph, inputs)
        self._limits = limits
        self._tables = tuple(each for each in tables_of(graph) if each.name in {spec.name for spec in inputs})
        self._runs: set[Run] = set()
        self._has_run = False
        self._weights = weights

    @property
    def inputs(self) -> Specs:
        """The model's inputs, in order."""
        return self._inputs

    @property
    def outputs(self) -> Specs:
        """The model's outputs, in order."""
        return self._outputs

    @property
    def device(self) -> Device:
        """The device that it runs on."""
        return CPU

    @property
    def executed(self) -> tuple[Executed, ...]:
        """Precision and kernel of every layer, counted; complete after the first run."""
        return executed_layers(self._compiled.model.get_runtime_model())

    @property
    def known_shapes(self) -> frozenset[Shapes]:
        """The combinations of input shapes that it has met: another one takes some milliseconds more."""
        return self._shapes.good

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        """The outputs for one set of inputs.

        Raises TensorError for inputs that do not fit or that OpenVINO would cut off, StoppedError when it is stopped, and
        InferenceError with the runtime's own words when it fails.
        """
        return self.stage(feeds)(outputs)

    def stage(self, feeds: Feeds) -> Ready:
        """Check the inputs and their shapes; what runs the model on them, once. A CPU reads them where they are."""
        checked = check_feeds(self._inputs, feeds)
        for spec in self._inputs:
            check_integers(spec, checked[spec.name], self._limits.get(spec.name, LARGEST))
        self._shapes.check(checked)
        check_ids(self._tables, checked)
        return functools.partial(self._run, checked)

    def stop(self) -> None:
        """Let the runs that are under way end before their next layer, with StoppedError; from any thread."""
        for run in list(self._runs):
            run.stop()

    def _run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        tensors = [(index, to_tensor(self._ov, spec, feeds[spec.name])) for index, spec in self._sends]
        wanted = [self._reads[name] for name in (outputs if outputs is not None else self._reads)]

        def send(request: Any) -> None:
            for index, tensor in tensors:
                request.set_input_tensor(index, tensor)

        def read(request: Any) -> Feeds:
            return {spec.name: to_array(spec, request.get_output_tensor(index)) for index, spec in wanted}

        run = Run()
        self._runs.add(run)
        try:
            with _NOTHING if self._has_run else self._first_run():
                return self._compiled.run(run, send, read)
        finally:
            self._runs.discard(run)

    @contextlib.contextmanager
    def _first_run(self) -> Iterator[None]:
        """Note that the model runs for the first time, and release the weights that OpenVINO has packed in it."""
        self._has_run = True
        with doing("running a model in OpenVINO for the first time", native_limit_s()):
            yield
        if self._weights is not None:
            release_pages(self._weights)


def open_session(model: Path | bytes, settings: OvSettings, specs: tuple[Specs, Specs] | None = None) -> OvSession:
    """A session for a model file or a serialized ONNX model; see `open_sessions`."""
    return open_sessions(model, settings, specs)[0]


def open_sessions(
    model: Path | bytes, settings: OvSettings, specs: tuple[Specs, Specs] | None = None, count: int = 1
) -> list[OvSession]:
    """So many sessions of one compiled model, which share its weights and its threads; a stream for each.

    `model` is an ONNX file, one in OpenVINO's own format (`.xml`), or a serialized ONNX model.
    `specs` are the inputs and outputs with the names of their free axes; without them every free axis has a name of its
    own. Raises PackageError without OpenVINO, and SourceError when it cannot compile the model, which has other tensors
    than `specs`, or has some of a type that it does not compute as it is, or computes with integers beyond FP32's.
    """
    ov, core = require_openvino(), _core()
    wanted = replace(settings, streams=max(settings.streams, count))
    try:
        with doing(f"compiling {_named(model)} in OpenVINO", native_limit_s()):
            graph = core.read_model(str(model) if isinstance(model, Path) else model)
            inputs = _typed(graph.inputs, specs and specs[0], "input")
            outputs = _typed(graph.outputs, specs and specs[1], "output")
            limits = integer_limits(graph)
            compiled = Compiled(
                functools.partial(core.compile_model, graph, "CPU", cpu_options(wanted)),
                wanted.streams,
                keeps_shapes=any(-1 in spec.wire_shape for spec in inputs),
            )
    except SourceError as error:
        error.where = error.where or _where(model)
        raise
    except Exception as error:  # OpenVINO raises RuntimeError, and what its own Python code meets
        raise SourceError(
            f"OpenVINO cannot compile the model: {reason(error)}",
            where=_where(model),
            hint="run it with --runtime onnxruntime",
        ) from error
    weights = model.with_suffix(".bin") if isinstance(model, Path) and model.suffix == ".xml" else None
    return [OvSession(ov, compiled, graph.clone(), inputs, outputs, limits, weights) for _ in range(count)]


def _core() -> Any:
    """OpenVINO's plugins, which this process holds once."""
    require_openvino()
    with _LOCK:
        return _make_core()


@functools.cache
def _make_core() -> Any:
    return require_openvino().Core()


def _typed(ports: Sequence[Any], specs: Specs | None, kind: str) -> Specs:
    """The specs with the element types of the graph; SourceError unless it has exactly these tensors."""
    found = {name: port for port in ports for name in port.names}
    if specs is None:
        return tuple(_described(port) for port in ports)
    if len(specs) != len(ports) or any(spec.name not in found for spec in specs):
        names = ", ".join(sorted(found)) or "none"
        raise SourceError(f"OpenVINO found the {kind}s {names} in the model, and not {', '.join(map(str, specs))}")
    return tuple(TensorSpec(spec.name, _dtype(spec.name, found[spec.name]), spec.shape) for spec in specs)


def _described(port: Any) -> TensorSpec:
    """A port as it describes itself."""
    name, shape = port.get_any_name(), port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise SourceError(
            f"`{name}` has any number of axes, which OpenVINO does not take", hint="run it with --runtime onnxruntime"
        )
    dims = tuple(dim.get_length() if dim.is_static else "?" for dim in shape)
    return TensorSpec(name, _dtype(name, port), dims)


def _in_order(ports: Sequence[Any], specs: Specs) -> list[tuple[int, TensorSpec]]:
    """Each spec with the place of its port."""
    places = {name: index for index, port in enumerate(ports) for name in port.names}
    return [(places[spec.name], spec) for spec in specs]


def _dtype(name: str, port: Any) -> DType:
    return dtype_of(name, str(port.get_element_type().get_type_name()))


def _named(model: Path | bytes) -> str:
    return f"`{model.name}`" if isinstance(model, Path) else "a model"


def _where(model: Path | bytes) -> str | None:
    return str(model) if isinstance(model, Path) else None
