"""A TensorRT engine's execution contexts with their stream and buffers: one run at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from demi.errors import DemiError, InferenceError, TensorError
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.buffers import SMALLEST, Block, Lane, Result
from demi.runtime.cuda.captures import RECORDINGS
from demi.runtime.tensorrt.log import why
from demi.tensors import Array, Feeds, TensorSpec

log = logging.getLogger("demi.runtime")

MOST_GRAPHS = 16
"""Recorded graphs that a slot keeps: a power of two each is plenty."""

Key = tuple[tuple[str, tuple[int, ...], int], ...]
"""What a recorded graph holds fast: name, shape and address of every tensor."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Every input's name and shape."""


@dataclass(slots=True)
class Recording:
    """A graph, and the context that it was recorded from, which nothing else may touch: TensorRT allows one graph each.

    A context holds what follows from its shapes, in memory that the graph reads; setting others would change it.
    """

    context: Any
    graph: Any = None
    key: Key = ()
    results: dict[str, Result] = field(default_factory=dict)


class Slot:
    """Contexts of one engine and a lane for them. Used by one thread at a time: `send`, then `run`.

    Copies in, the engine and copies out are put on one stream, in this order; nothing else waits for anything. With
    `graphs`, each of the first shapes has a context of its own; they share the memory between layers, for only one runs.
    """

    def __init__(
        self, trt: Any, engine: Any, cuda: Cuda, logger: Any, outputs: Sequence[TensorSpec], *, graphs: bool = False
    ) -> None:
        cuda.use()
        self._trt, self._engine, self._cuda, self._logger = trt, engine, cuda, logger
        self._outputs = tuple(outputs)
        self._lane = Lane(cuda)
        self._plain: Any = None
        self._memory: Block | None = None
        self._recordings: dict[Shapes, Recording] = {}
        self._growers: dict[tuple[int, str], Any] = {}
        self._may_record = graphs
        self._recording: Recording | None = None
        self._ranges: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._sent: Key = ()
        self._is_ready = False
        self.context: Any = None

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, feeds: Feeds) -> None:
        """Put the inputs on their way; TensorError for a shape that the engine was not built for."""
        self._choose(tuple((name, array.shape) for name, array in feeds.items()))
        self._sent = tuple((name, array.shape, self._copied(name, array)) for name, array in feeds.items())
        self._is_ready = self._stands_ready()
        if not self._is_ready:
            for name, shape, address in self._sent:
                self._set_shape(name, shape)
                self._place(name, address)

    def run(self) -> Feeds:
        """Every output, after the engine is done with what was sent."""
        self._cuda.use()
        if self._recording is not None and self._is_ready:
            self._cuda.launch(self._recording.graph, self._lane.stream)
            return self._fetch(self._recording.results)
        self._infer_shapes()
        grown = {spec.name: self._grower(spec) for spec in self._outputs if -1 in self._shape(spec)}
        known = {spec.name: self._room(spec) for spec in self._outputs if spec.name not in grown}
        self._enqueue()
        if self._recording is not None and self._may_record and not grown:
            self._record(self._recording, known)
        if grown:
            self._lane.wait()  # sizes that depend on the data are known now
        known |= {name: grower.result() for name, grower in grown.items()}
        return self._fetch(known)

    def close(self) -> None:
        """Let go of the graphs, the contexts and the memory, in this order."""
        with RECORDINGS.apart():
            self._cuda.use()  # whichever thread this is
            for recording in self._recordings.values():
                self._forget(recording)
            self._recordings.clear()
            self._recording = self._plain = self.context = None
            self._growers.clear()
            if self._memory is not None:
                self._cuda.free(self._memory.address)
                self._memory = None
            self._lane.close()

    def _choose(self, shapes: Shapes) -> None:
        """The context for inputs of these shapes: one of their own, where a graph of them is or will be recorded."""
        self._recording = self._recordings.get(shapes)
        if self._recording is None and self._may_record and len(self._recordings) < MOST_GRAPHS:
            self._recording = self._recordings[shapes] = Recording(self._new_context(shared=True))
        if self._recording is None and self._plain is None:
            self._plain = self._new_context(shared=False)
        self.context = self._recording.context if self._recording is not None else self._plain

    def _new_context(self, *, shared: bool) -> Any:
        self._cuda.use()
        strategies = self._trt.ExecutionContextAllocationStrategy
        with RECORDINGS.apart():
            context = self._engine.create_execution_context(strategies.USER_MANAGED if shared else strategies.STATIC)
        if context is None:
            raise InferenceError(
                f"no room for an execution context on {self._cuda.device}: {why(self._logger)}",
                hint="serve fewer models on this GPU, or build the engine for smaller shapes",
            )
        if shared:
            if self._memory is None:
                size = max(int(self._engine.device_memory_size_v2), SMALLEST)
                self._memory = Block(self._cuda.allocate(size), size)
            context.set_device_memory(self._memory.address, self._memory.size)
        return context

    def _infer_shapes(self) -> None:
        """Let the shapes of the inputs say those of all others; InferenceError where they do not go together."""
        try:
            unknown = self.context.infer_shapes()
        except RuntimeError as error:  # it holds a number; the log has the reason
            raise InferenceError(f"the shapes of the inputs do not go together: {why(self._logger)}") from error
        if unknown:
            raise InferenceError(f"TensorRT cannot tell the shapes: {', '.join(unknown)} is not set")

    def _copied(self, name: str, array: Array) -> int:
        return self._lane.pin(name, array) if self._on_host(name) else self._lane.send(name, array)

    def _stands_ready(self) -> bool:
        """Whether a graph stands ready that reads what was sent from where it lies, and whose outputs are in place."""
        found = self._recording
        if found is None or found.graph is None:
            return False
        return found.key == (*self._sent, *_places(found.results)) and all(
            self._room_of(name, result.nbytes) == result.address for name, result in found.results.items()
        )

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self._lane.stream):
            raise InferenceError(f"TensorRT failed: {why(self._logger)}")

    def _record(self, recording: Recording, results: dict[str, Result]) -> None:
        """Keep this run as a graph for the next of these shapes; the first run of a shape had to go without."""
        self._forget(recording)
        try:
            self._lane.wait()
            with RECORDINGS.alone() as may_record:
                if not may_record:
                    return
                recording.graph = self._cuda.record(self._lane.stream, self._enqueue)
        except DemiError as error:
            log.warning("no CUDA graphs for this engine: %s", error)
            self._may_record = False
            return
        recording.key, recording.results = (*self._sent, *_places(results)), results

    def _forget(self, recording: Recording) -> None:
        if recording.graph is not None:
            self._cuda.destroy_graph(recording.graph)
        recording.graph, recording.key, recording.results = None, (), {}

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not (self._fits(name, shape) and self.context.set_input_shape(name, shape)):
            raise TensorError(f"input `{name}` has shape {list(shape)}, and the engine takes {self._range_of(name)}")

    def _fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the engine was built for a shape: TensorRT would say so as well, in its log, as an error of ours."""
        low, high = self._limits(name)
        return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def _limits(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The smallest and the largest shape of an input; profiles know of those whose shape is free."""
        if name not in self._ranges:
            fixed = tuple(self._engine.get_tensor_shape(name))
            free = -1 in fixed
            low, _, high = self._engine.get_tensor_profile_shape(name, 0) if free else (fixed, fixed, fixed)
            self._ranges[name] = (tuple(low), tuple(high))
        return self._ranges[name]

    def _room(self, spec: TensorSpec) -> Result:
        """A place for an output whose shape is known before the run."""
        shape, dtype = self._shape(spec), spec.dtype.numpy
        size = Result(0, shape, dtype).nbytes
        result = Result(self._room_of(spec.name, size), shape, dtype)
        self._place(spec.name, result.address)
        return result

    def _room_of(self, name: str, size: int) -> int:
        room = self._lane.host_room if self._on_host(name) else self._lane.room
        return room(name, size)

    def _grower(self, spec: TensorSpec) -> Any:
        """What gives an output room once its size is known; TensorRT holds on to it from run to run."""
        key = (id(self.context), spec.name)
        if key not in self._growers:
            self._growers[key] = make_grower(self._trt, self._lane, spec)
            self.context.set_output_allocator(spec.name, self._growers[key])
        return self._growers[key]

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
        low, high = self._limits(name)
        return str(list(low)) if low == high else f"{list(low)} to {list(high)}"


def _places(results: dict[str, Result]) -> Key:
    return tuple((name, result.shape, result.address) for name, result in results.items())


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
