"""A fake CUDA runtime whose device memory is host memory: streams execute their work when they are synchronized.

It behaves as `cuda.bindings.runtime` does, checks what it is handed, and counts what was never given back.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

SUCCESS = 0
CAPTURING = 900
"""CUDA's code for calls that are forbidden during a capture."""
UNSAFE = ("cudaMalloc", "cudaMallocHost", "cudaFree", "cudaFreeHost")


class FakeCudart:
    """One machine: its GPUs, its driver, and a queue of work for each stream."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")  # noqa: N815
    cudaDeviceAttr = SimpleNamespace(  # noqa: N815
        cudaDevAttrComputeCapabilityMajor="major", cudaDevAttrComputeCapabilityMinor="minor"
    )

    def __init__(
        self,
        gpus: int = 2,
        capability: tuple[int, int] = (9, 0),
        driver: int = 13000,
        failures: dict[str, int] | None = None,
    ) -> None:
        self.gpus, self.capability, self.driver = gpus, capability, driver
        self.failures = failures or {}
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.recording: dict[int, list[Callable[[], None]]] = {}
        self.recorders: dict[int, int] = {}
        self.modes: dict[int, str] = {}
        self.graphs: set[int] = set()
        self.calls: list[str] = []
        self.used: list[int] = []

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name.startswith("cuda") and callable(value):
            calls, failures = object.__getattribute__(self, "calls"), object.__getattribute__(self, "failures")

            def call(*arguments: Any) -> Any:
                calls.append(name)
                if name in failures and name != "cudaGetErrorString":
                    return (failures[name], None)
                if name in UNSAFE and self.forbids():
                    return (CAPTURING, None)
                return value(*arguments)

            return call
        return value

    others_capture = False
    """True if other code of this process is capturing and restricts unsafe calls of other threads."""

    def forbids(self) -> bool:
        """Return whether this thread may not allocate: it captures, or others do and it has not opted out."""
        thread = threading.get_ident()
        return thread in self.recorders.values() or (self.others_capture and self.modes.get(thread) != "thread")

    def cudaThreadExchangeStreamCaptureMode(self, mode: str) -> Any:  # noqa: N802
        before = self.modes.get(threading.get_ident(), "global")
        self.modes[threading.get_ident()] = mode
        return SUCCESS, before

    def cudaGetErrorString(self, error: int) -> Any:  # noqa: N802
        return SUCCESS, {35: b"CUDA driver version is insufficient", 2: b"out of memory"}.get(int(error), b"went wrong")

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return SUCCESS, self.gpus

    def cudaDeviceGetAttribute(self, attribute: str, index: int) -> Any:  # noqa: N802
        return SUCCESS, self.capability[attribute == "minor"]

    def cudaGetDeviceProperties(self, index: int) -> Any:  # noqa: N802
        return SUCCESS, SimpleNamespace(name=b"Fake GPU")

    def cudaDriverGetVersion(self) -> Any:  # noqa: N802
        return SUCCESS, self.driver

    def cudaMemGetInfo(self) -> Any:  # noqa: N802
        return SUCCESS, 6 << 30, 8 << 30

    def cudaSetDevice(self, index: int) -> Any:  # noqa: N802
        self.used.append(index)
        return (SUCCESS,)

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        return SUCCESS, _allocate(self.device, size)

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        del self.device[address]
        return (SUCCESS,)

    def cudaMallocHost(self, size: int) -> Any:  # noqa: N802
        return SUCCESS, _allocate(self.pinned, size)

    def cudaFreeHost(self, address: int) -> Any:  # noqa: N802
        del self.pinned[address]
        return (SUCCESS,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        handle = max(self.streams, default=100) + 1
        self.streams[handle] = []
        return SUCCESS, handle

    def cudaStreamDestroy(self, stream: int) -> Any:  # noqa: N802
        del self.streams[stream]
        return (SUCCESS,)

    def cudaStreamSynchronize(self, stream: int) -> Any:  # noqa: N802
        if stream in self.recording:
            return (CAPTURING,)
        work, self.streams[stream] = self.streams[stream], []
        for each in work:
            each()
        return (SUCCESS,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: int) -> Any:  # noqa: N802
        host, device = (source, to) if kind == "in" else (to, source)
        assert is_inside(self.pinned, host, size), "asynchronous copies need pinned host memory"
        assert is_inside(self.device, device, size) or self.foreign_device_memory, "not on the device"
        self.put(stream, lambda: ctypes.memmove(to, source, size))
        return (SUCCESS,)

    foreign_device_memory = False
    """True if allocations of another runtime, which are not recorded here, count as device memory."""

    def put(self, stream: int, work: Callable[[], Any]) -> None:
        """Add work to a stream: executed when it is synchronized, or recorded during a capture."""
        (self.recording if stream in self.recording else self.streams)[stream].append(work)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> Any:  # noqa: N802
        assert mode == "thread"
        assert stream in self.streams
        self.recording[stream], self.recorders[stream] = [], threading.get_ident()
        return (SUCCESS,)

    def cudaStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        assert self.recorders.pop(stream) == threading.get_ident(), "the thread that began to record ends it"
        return SUCCESS, self.kept(self.recording.pop(stream))

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:  # noqa: N802
        return SUCCESS, self.kept(list(graph))

    def kept(self, graph: list[Callable[[], None]]) -> list[Callable[[], None]]:
        """Return a graph, which is counted until it is destroyed."""
        self.graphs.add(id(graph))
        return graph

    def cudaGraphDestroy(self, graph: Any) -> Any:  # noqa: N802
        self.graphs.remove(id(graph))
        return (SUCCESS,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> Any:  # noqa: N802
        for work in graph:
            self.put(stream, work)
        return (SUCCESS,)

    def cudaGraphExecDestroy(self, graph: Any) -> Any:  # noqa: N802
        self.graphs.remove(id(graph))
        return (SUCCESS,)


def _allocate(memory: dict[int, Any], size: int) -> int:
    assert size > 0
    block = ctypes.create_string_buffer(size)
    memory[ctypes.addressof(block)] = block
    return ctypes.addressof(block)


def is_inside(memory: dict[int, Any], address: int, size: int) -> bool:
    """Return whether these bytes lie within one allocation."""
    return any(start <= address and address + size <= start + len(block) for start, block in memory.items())
