"""One execution context of a TensorRT engine with its stream and buffers: one run at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from demi.errors import DemiError, InferenceError, TensorError
from demi.runtime.buffers import Lane, Result
from demi.runtime.cuda import Cuda
from demi.tensors import Feeds, TensorSpec

log = logging.getLogger("demi.runtime")

MOST_GRAPHS = 16
"""Recorded graphs that a slot keeps: a power of two each is plenty."""

Key = tuple[tuple[str, tuple[int, ...], int], ...]
"""What a recorded graph holds fast: name, shape and address of every tensor."""


class Slot:
    """A context and its lane. Used by one thread at a time: `send`, then `run`.

    Copies in, the engine and copies out are put on one stream, in this order; nothing else waits for anything.
    """

    def __init__(
        self, trt: Any, engine: Any, cuda: Cuda, logger: Any, outputs: Sequence[TensorSpec], *, graphs: bool = False
    ) -> None:
        cuda.use()
        self._trt, self._engine, self._cuda, self._logger = trt, engine, cuda, logger
        self._outputs = tuple(outputs)
        self.context = engine.create_execution_context()
        if self.context is None:
            raise InferenceError(
                f"no room for an execution context on {cuda.device}: {'; '.join(logger.last_errors)}",
                hint="serve fewer models on this GPU, or build the engine for smaller shapes",
            )
        self._lane = Lane(cuda)
        self._graphs: dict[Key, Any] = {}
        self._growers: dict[str, Any] = {}
        self._may_record = graphs
        self._sent: Key = ()

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, feeds: Feeds) -> None:
        """Put the inputs on their way; TensorError for a shape that the engine was not built for."""
        sent = []
        for name, array in feeds.items():
            if not self.context.set_input_shape(name, array.shape):
                raise TensorError(
                    f"input `{name}` has shape {list(array.shape)}, and the engine takes {self._range_of(name)}"
                )
            address = self._lane.pin(name, array) if self._on_host(name) else self._lane.send(name, array)
            self._place(name, address)
            sent.append((name, array.shape, address))
        self._sent = tuple(sent)

    def run(self) -> Feeds:
        """Every output, after the engine is done with what was sent."""
        self._cuda.use()
        if unknown := self.context.infer_shapes():
            raise InferenceError(f"TensorRT cannot tell the shapes: {', '.join(unknown)} is not set")
        grown = {spec.name: self._grower(spec) for spec in self._outputs if -1 in self._shape(spec)}
        known = {spec.name: self._room(spec) for spec in self._outputs if spec.name not in grown}
        self._execute(known, fixed=not grown)
        if grown:
            self._lane.wait()  # sizes that depend on the data are known now
        known |= {name: grower.result() for name, grower in grown.items()}
        return self._fetch(known)

    def close(self) -> None:
        """Let go of the graphs, the context and the memory, in this order."""
        for graph in self._graphs.values():
            self._cuda.destroy_graph(graph)
        self._graphs.clear()
        self.context = None
        self._growers.clear()
        self._lane.close()

    def _execute(self, results: dict[str, Result], *, fixed: bool) -> None:
        key = (*self._sent, *((name, result.shape, result.address) for name, result in results.items()))
        if key in self._graphs:
            self._cuda.launch(self._graphs[key], self._lane.stream)
            return
        self._enqueue()
        if self._may_record and fixed and len(self._graphs) < MOST_GRAPHS:
            self._record(key)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self._lane.stream):
            raise InferenceError(f"TensorRT failed: {'; '.join(self._logger.last_errors) or 'it gave no reason'}")

    def _record(self, key: Key) -> None:
        """Keep this run as a graph for the next of these shapes; the first run of a shape had to go without."""
        try:
            self._lane.wait()
            self._cuda.begin_capture(self._lane.stream)
            try:
                self._enqueue()
            finally:
                graph = self._cuda.end_capture(self._lane.stream)
            self._graphs[key] = graph
        except DemiError as error:
            log.warning("no CUDA graphs for this engine: %s", error)
            self._may_record = False

    def _room(self, spec: TensorSpec) -> Result:
        """A place for an output whose shape is known before the run."""
        shape, dtype = self._shape(spec), spec.dtype.numpy
        size = Result(0, shape, dtype).nbytes
        room = self._lane.host_room if self._on_host(spec.name) else self._lane.room
        result = Result(room(spec.name, size), shape, dtype)
        self._place(spec.name, result.address)
        return result

    def _grower(self, spec: TensorSpec) -> Any:
        """What gives an output room once its size is known; TensorRT holds on to it from run to run."""
        if spec.name not in self._growers:
            self._growers[spec.name] = make_grower(self._trt, self._lane, spec)
            self.context.set_output_allocator(spec.name, self._growers[spec.name])
        return self._growers[spec.name]

    def _fetch(self, results: dict[str, Result]) -> Feeds:
        host = {name for name in results if self._on_host(name)}
        answers = self._lane.fetch({name: result for name, result in results.items() if name not in host})
        return answers | {name: self._lane.read_host(name, results[name]) for name in host}

    def _place(self, name: str, address: int) -> None:
        if not self.context.set_tensor_address(name, address):
            raise InferenceError(f"TensorRT does not take the address of `{name}`")

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        return tuple(self.context.get_tensor_shape(spec.name))

    def _on_host(self, name: str) -> bool:
        """Whether a tensor holds a shape, which TensorRT reads and writes on the host."""
        return bool(self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST)

    def _range_of(self, name: str) -> str:
        low, _, high = (list(dims) for dims in self._engine.get_tensor_profile_shape(name, 0))
        return str(low) if low == high else f"{low} to {high}"


def make_grower(trt: Any, lane: Lane, spec: TensorSpec) -> Any:
    """An output allocator for a tensor whose size depends on the data; `result()` tells where it ended up."""

    class Grower(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self._address, self._shape = 0, (0,) * len(spec.shape)

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            self._address = lane.room(tensor_name, size)
            return self._address

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            return self.reallocate_output_async(tensor_name, memory, size, alignment, 0)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self._shape = tuple(shape)

        def result(self) -> Result:
            return Result(self._address, self._shape, spec.dtype.numpy)

    return Grower()
