"""Execution contexts of a TensorRT engine, with their stream, buffers and CUDA graphs: one run at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from demi.errors import DemiError, InferenceError, TensorError
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.buffers import SMALLEST, Block, Lane, Result
from demi.runtime.cuda.capture_lock import CAPTURE_LOCK
from demi.runtime.tensorrt.log import why
from demi.tensors import Array, Feeds, TensorSpec

log = logging.getLogger("demi.runtime")

MOST_GRAPHS = 16
"""Most captured graphs of one runner: with one for each power of two, 16 are enough for all batch sizes."""

Key = tuple[tuple[str, tuple[int, ...], int], ...]
"""The fixed parts of a captured graph: name, shape and address of every tensor."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of every input."""


@dataclass(slots=True)
class CapturedGraph:
    """A captured graph and its execution context, which is used for nothing else.

    The graph reads memory in which the context keeps values that depend on its shapes, so setting other shapes would
    invalidate the graph. TensorRT allows one graph per context.
    """

    context: Any
    graph: Any = None
    key: Key = ()
    results: dict[str, Result] = field(default_factory=dict)


class EngineRunner:
    """Runs an engine on one lane. Used by one thread at a time: `send`, then `run`. Owns its contexts and buffers.

    Copies in, the engine and copies out are enqueued on one stream, in this order. With `graphs`, each of the first
    `MOST_GRAPHS` shapes has its own context; they share the memory between layers, since only one runs at a time.
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
        self._graphs: dict[Shapes, CapturedGraph] = {}
        self._allocators: dict[tuple[int, str], Any] = {}
        self._captures = graphs
        self._captured: CapturedGraph | None = None
        self._ranges: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._sent: Key = ()
        self._can_replay = False
        self.context: Any = None

    def __enter__(self) -> EngineRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, feeds: Feeds) -> None:
        """Enqueue copies of the inputs. Raises TensorError for a shape that the engine was not built for."""
        self._choose(tuple((name, array.shape) for name, array in feeds.items()))
        self._sent = tuple((name, array.shape, self._send(name, array)) for name, array in feeds.items())
        self._can_replay = self._graph_matches()
        if not self._can_replay:
            for name, shape, address in self._sent:
                self._set_shape(name, shape)
                self._place(name, address)

    def run(self) -> Feeds:
        """Run the engine on the inputs that were sent, and return all outputs. Raises InferenceError."""
        self._cuda.use()
        if self._captured is not None and self._can_replay:
            self._cuda.launch(self._captured.graph, self._lane.stream)
            return self._fetch(self._captured.results)
        self._infer_shapes()
        dynamic = {spec.name: self._output_allocator(spec) for spec in self._outputs if -1 in self._shape(spec)}
        known = {spec.name: self._place_output(spec) for spec in self._outputs if spec.name not in dynamic}
        self._enqueue()
        if self._captured is not None and self._captures and not dynamic:
            self._capture(self._captured, known)
        if dynamic:
            self._lane.wait()  # sizes that depend on the data are known after the run
        known |= {name: allocator.result() for name, allocator in dynamic.items()}
        return self._fetch(known)

    def close(self) -> None:
        """Destroy the graphs and the contexts, and free the memory, in this order."""
        with CAPTURE_LOCK.changing_sessions():
            self._cuda.use()  # any thread may close
            for captured in self._graphs.values():
                self._forget(captured)
            self._graphs.clear()
            self._captured = self._plain = self.context = None
            self._allocators.clear()
            if self._memory is not None:
                self._cuda.free(self._memory.address)
                self._memory = None
            self._lane.close()

    def _choose(self, shapes: Shapes) -> None:
        """Select the context for inputs of these shapes: their own if a graph is or will be captured, else the common one."""
        self._captured = self._graphs.get(shapes)
        if self._captured is None and self._captures and len(self._graphs) < MOST_GRAPHS:
            self._captured = self._graphs[shapes] = CapturedGraph(self._new_context(shared=True))
        if self._captured is None and self._plain is None:
            self._plain = self._new_context(shared=False)
        self.context = self._captured.context if self._captured is not None else self._plain

    def _new_context(self, *, shared: bool) -> Any:
        self._cuda.use()
        strategies = self._trt.ExecutionContextAllocationStrategy
        with CAPTURE_LOCK.changing_sessions():
            context = self._engine.create_execution_context(strategies.USER_MANAGED if shared else strategies.STATIC)
        if context is None:
            raise InferenceError(
                f"out of memory for an execution context on {self._cuda.device}: {why(self._logger)}",
                hint="serve fewer models on this GPU, or build the engine for smaller shapes",
            )
        if shared:
            if self._memory is None:
                size = max(int(self._engine.device_memory_size_v2), SMALLEST)
                self._memory = Block(self._cuda.allocate(size), size)
            context.set_device_memory(self._memory.address, self._memory.size)
        return context

    def _infer_shapes(self) -> None:
        """Infer the shapes of all tensors from those of the inputs. Raises InferenceError where these contradict."""
        try:
            unknown = self.context.infer_shapes()
        except RuntimeError as error:  # its message is a number; the log has the reason
            raise InferenceError(f"the shapes of the inputs contradict each other: {why(self._logger)}") from error
        if unknown:
            raise InferenceError(f"TensorRT cannot infer all shapes: {', '.join(unknown)} is not set")

    def _send(self, name: str, array: Array) -> int:
        return self._lane.pin(name, array) if self._on_host(name) else self._lane.send(name, array)

    def _graph_matches(self) -> bool:
        """Return whether the captured graph matches the current input and output addresses."""
        found = self._captured
        if found is None or found.graph is None:
            return False
        return found.key == (*self._sent, *_places(found.results)) and all(
            self._reserve(name, result.nbytes) == result.address for name, result in found.results.items()
        )

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self._lane.stream):
            raise InferenceError(f"TensorRT failed: {why(self._logger)}")

    def _capture(self, captured: CapturedGraph, results: dict[str, Result]) -> None:
        """Capture a graph for the next run with these shapes, after their first run without one."""
        self._forget(captured)
        try:
            self._lane.wait()
            with CAPTURE_LOCK.capturing() as may_capture:
                if not may_capture:
                    return
                captured.graph = self._cuda.capture(self._lane.stream, self._enqueue)
        except DemiError as error:
            log.warning("no CUDA graphs for this engine: %s", error)
            self._captures = False
            return
        captured.key, captured.results = (*self._sent, *_places(results)), results

    def _forget(self, captured: CapturedGraph) -> None:
        if captured.graph is not None:
            self._cuda.destroy_graph(captured.graph)
        captured.graph, captured.key, captured.results = None, (), {}

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not (self._fits(name, shape) and self.context.set_input_shape(name, shape)):
            raise TensorError(f"input `{name}` has shape {list(shape)}, but the engine takes {self._range_of(name)}")

    def _fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether the engine was built for a shape; TensorRT itself would only log an error."""
        low, high = self._limits(name)
        return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def _limits(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the smallest and the largest shape of an input; free shapes are in the optimization profile."""
        if name not in self._ranges:
            fixed = tuple(self._engine.get_tensor_shape(name))
            free = -1 in fixed
            low, _, high = self._engine.get_tensor_profile_shape(name, 0) if free else (fixed, fixed, fixed)
            self._ranges[name] = (tuple(low), tuple(high))
        return self._ranges[name]

    def _place_output(self, spec: TensorSpec) -> Result:
        """Reserve and set the address of an output whose shape is known before the run."""
        shape, dtype = self._shape(spec), spec.dtype.numpy
        size = Result(0, shape, dtype).nbytes
        result = Result(self._reserve(spec.name, size), shape, dtype)
        self._place(spec.name, result.address)
        return result

    def _reserve(self, name: str, size: int) -> int:
        reserve = self._lane.reserve_host if self._on_host(name) else self._lane.reserve
        return reserve(name, size)

    def _output_allocator(self, spec: TensorSpec) -> Any:
        """Return the allocator of an output whose size depends on the data; the context keeps it from run to run."""
        key = (id(self.context), spec.name)
        if key not in self._allocators:
            self._allocators[key] = make_output_allocator(self._trt, self._lane, spec)
            self.context.set_output_allocator(spec.name, self._allocators[key])
        return self._allocators[key]

    def _fetch(self, results: dict[str, Result]) -> Feeds:
        host = {name for name in results if self._on_host(name)}
        answers = self._lane.fetch({name: result for name, result in results.items() if name not in host})
        return answers | {name: self._lane.read_host(name, results[name]) for name in host}

    def _place(self, name: str, address: int) -> None:
        if not self.context.set_tensor_address(name, address):
            raise InferenceError(f"TensorRT rejected the address of `{name}`")

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        return tuple(self.context.get_tensor_shape(spec.name))

    def _on_host(self, name: str) -> bool:
        """Return whether TensorRT reads and writes a tensor in host memory, as it does for shapes."""
        return bool(self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST)

    def _range_of(self, name: str) -> str:
        low, high = self._limits(name)
        return str(list(low)) if low == high else f"{list(low)} to {list(high)}"


def _places(results: dict[str, Result]) -> Key:
    return tuple((name, result.shape, result.address) for name, result in results.items())


def make_output_allocator(trt: Any, lane: Lane, spec: TensorSpec) -> Any:
    """Return an output allocator for a tensor whose size depends on the data; its `result()` is the tensor's place."""

    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self._address, self._shape = 0, (0,) * len(spec.shape)

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            self._address = lane.reserve(tensor_name, size)
            return self._address

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            return self.reallocate_output_async(tensor_name, memory, size, alignment, 0)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self._shape = tuple(shape)

        def result(self) -> Result:
            return Result(self._address, self._shape, spec.dtype.numpy)

    return OutputAllocator()
