"""ONNX Runtime with inputs and outputs bound to device memory, staged one batch ahead of the run.

`session.run` copies arrays from pageable memory, inside the run. Here, inputs are copied through pinned memory while
the previous batch runs, and outputs stay on the device until all are fetched together. Addresses are bound instead of
arrays, which also carries bfloat16, a type that NumPy lacks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from demi.runtime.base import Ready
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.buffers import Lane, Lease, Pool, Result
from demi.runtime.cuda.capture_lock import CAPTURE_LOCK
from demi.runtime.cuda.failures import first_line
from demi.runtime.onnxruntime.termination import Runs, failure_of
from demi.tensors import DType, Feeds, TensorSpec, check_feeds

AHEAD = 2
"""Lanes of a session: one batch runs while the next is copied to the device."""

NO_GRAPH = "-1"
"""`gpu_graph_id` of a run that neither captures nor replays a CUDA graph."""


@dataclass(frozen=True, slots=True)
class Bindable:
    """An ONNX Runtime session, with all that is needed to bind its tensors."""

    session: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    run_options: Callable[[str], Any]
    """Function from a `gpu_graph_id` to the runtime's options for a run."""
    place: tuple[str, int]
    """Kind and index of the device in ONNX Runtime's terms."""
    runs: Runs = field(default_factory=Runs)

    def new_binding(self, addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """Return a binding with its inputs at these addresses."""
        binding = self.session.io_binding()
        for spec in self.inputs:
            binding.bind_input(spec.name, *self.place, spec.dtype.onnx, shapes[spec.name], addresses[spec.name])
        return binding

    def run(self, binding: Any, graph: str = NO_GRAPH) -> None:
        """Run to completion. Raises InferenceError with the runtime's message.

        The runtime waits for its own stream. `synchronize_outputs` would wait for the whole device, that is for staged
        batches and other models, and would fail during a graph capture.
        """
        options = self.run_options(graph)
        try:
            with self.runs.under_way(options):
                self.session.run_with_iobinding(binding, options)
        except Exception as error:
            failure = failure_of(options, f"ONNX Runtime failed: {first_line(error)}")
            if graph != NO_GRAPH and failure.hint is None:
                failure.hint = "try without --cuda-graphs"
            raise failure from error

    def results(self, binding: Any, names: Sequence[str]) -> dict[str, Result]:
        """Return where the outputs of a run are, in the order in which they were bound."""
        types = {spec.name: spec.dtype.numpy for spec in self.outputs}
        values = binding.get_outputs()
        return {
            name: Result(value.data_ptr(), tuple(value.shape()), types[name])
            for name, value in zip(names, values, strict=True)
        }


def can_bind(specs: Sequence[TensorSpec]) -> bool:
    """Return whether all tensors have an address to bind; strings have none."""
    return all(spec.dtype is not DType.BYTES for spec in specs)


class Binder:
    """Runs a session on tensors bound to device memory. Owns the lanes; thread-safe."""

    def __init__(self, bindable: Bindable, cuda: Cuda) -> None:
        self.cuda = cuda
        self._bindable = bindable
        self._names = [spec.name for spec in bindable.outputs]
        self._lanes = Pool(lambda: Lane(cuda), AHEAD)
        self._thread = threading.local()

    def stage(self, feeds: Feeds) -> Ready:
        """Copy the inputs to the device, and return the run. Raises TensorError when they do not fit."""
        feeds = check_feeds(self._bindable.inputs, feeds)
        lease = Lease(self._lanes)
        with lease as lane:
            addresses = {name: lane.send(name, array) for name, array in feeds.items()}
            lane.wait()  # ONNX Runtime computes on its own stream, which does not wait for this one
        shapes = {name: array.shape for name, array in feeds.items()}

        def run(outputs: Sequence[str] | None = None) -> Feeds:
            try:
                return self._run(lease.item, addresses, shapes, list(outputs) if outputs is not None else self._names)
            finally:
                lease.end()

        return run

    def _run(
        self, lane: Lane, addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], names: Sequence[str]
    ) -> Feeds:
        binding = self._bindable.new_binding(addresses, shapes)
        for name in names:
            binding.bind_output(name, *self._bindable.place)
        with self._first_apart():
            self._bindable.run(binding)
        return lane.fetch(self._bindable.results(binding, names))

    @contextlib.contextmanager
    def _first_apart(self) -> Iterator[None]:
        """Keep a thread's first run apart from graph captures: the runtime then creates cuBLAS and cuDNN handles, and the
        driver loads kernels, both of which may synchronize the device."""
        if getattr(self._thread, "has_run", False):
            yield
            return
        with CAPTURE_LOCK.changing_sessions():
            yield
        self._thread.has_run = True
