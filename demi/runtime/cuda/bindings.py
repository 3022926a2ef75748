"""The CUDA runtime: the only module that imports cuda.bindings.

Memory on the device, pinned memory on the host, copies, streams and graphs of one GPU. Every address is an `int`, so
that runtimes of any make can be handed one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from demi.errors import (
    DemiError,
    DeviceError,
    DeviceLostError,
    InferenceError,
    MissingError,
    missing_package,
)
from demi.runtime.base import Device
from demi.runtime.cuda.failures import HINT, ROOM_HINT, STICKY

OUT_OF_MEMORY = 2
UNUSABLE = frozenset({3, 34, 35, 36, 46, 100, 101, 802, 803, 804, 805})
"""Codes of a device or driver that nothing can be done with: not initialized, a stub, too old, a function too new for it,
taken, none, no such device, not ready, another version than its library, no compatibility package, no MPS server."""

_DRIVER_HINT = "check `nvidia-smi`: CUDA 13 needs driver r580 or newer; or use --device cpu"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU and its driver, as the CUDA runtime describes them."""

    name: str
    capability: tuple[int, int]
    """Compute capability, such as (9, 0)."""
    driver_cuda: tuple[int, int]
    """The newest CUDA version that the driver can serve, such as (13, 0)."""
    memory_bytes: int


def require_cuda() -> Any:
    """The CUDA runtime's bindings; PackageError when they are not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise missing_package("cuda-bindings", "gpu") from error
    return runtime


class Cuda:
    """One GPU: memory, copies and streams. Any thread may call; each call makes the device that thread's current one.

    `runtime` is the bindings module, or something that behaves alike.
    """

    def __init__(self, device: Device, runtime: Any = None) -> None:
        self.device = device
        self._rt = runtime if runtime is not None else require_cuda()
        self._thread = threading.local()

    def describe(self) -> Gpu:
        """What this GPU is; DeviceError when there is none of this index, no driver, or too old a one."""
        count = self._call("cudaGetDeviceCount")
        if self.device.index >= count:
            raise DeviceError(
                f"`{self.device}` was asked for, but this machine has {count} GPU{'s' if count != 1 else ''}",
                hint="use cuda:N with N below that number, check CUDA_VISIBLE_DEVICES, or use --device cpu",
            )
        index, attribute = self.device.index, self._rt.cudaDeviceAttr
        major = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, index)
        minor = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, index)
        name = self._call("cudaGetDeviceProperties", index).name
        driver = self._call("cudaDriverGetVersion")
        return Gpu(
            name=name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else str(name),
            capability=(int(major), int(minor)),
            driver_cuda=(driver // 1000, driver % 1000 // 10),
            memory_bytes=self.memory()[1],
        )

    def use(self) -> None:
        """Make this GPU the current one of the calling thread, which then minds no recording but its own.

        ONNX Runtime records so that, while it does, every other thread of the process is refused memory: unless the
        thread has said that recordings of others are none of its business.
        """
        self._call("cudaSetDevice", self.device.index)
        if not getattr(self._thread, "is_apart", False):
            mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._call("cudaThreadExchangeStreamCaptureMode", mode)
            self._thread.is_apart = True

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of device memory, of all processes together."""
        self.use()
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the device."""
        self.use()
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give device memory back."""
        self.use()
        self._call("cudaFree", address)

    def allocate_host(self, size: int) -> int:
        """The address of `size` bytes of pinned host memory, which copies without going through a driver's buffer."""
        self.use()
        return int(self._call("cudaMallocHost", size))

    def free_host(self, address: int) -> None:
        """Give pinned host memory back."""
        self._call("cudaFreeHost", address)

    def create_stream(self) -> int:
        """The handle of a stream that does not wait for the default one."""
        self.use()
        return int(self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        """End a stream."""
        self._call("cudaStreamDestroy", stream)

    def wait(self, stream: int) -> None:
        """Block this thread, and no other, until all that was put on the stream is done."""
        self.use()
        self._call("cudaStreamSynchronize", stream)

    def copy_in(self, to: int, source: int, size: int, stream: int) -> None:
        """Put a copy from pinned host memory to the device on the stream."""
        self._copy(to, source, size, self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def copy_out(self, to: int, source: int, size: int, stream: int) -> None:
        """Put a copy from the device to pinned host memory on the stream."""
        self._copy(to, source, size, self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def record(self, stream: int, work: Callable[[], None]) -> Any:
        """What `work` puts on the stream, recorded instead of run, ready to `launch` any number of times."""
        self.use()
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            with suppress(DemiError):  # whatever came of it, the stream must not stay as it is
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream))
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        """Put a recorded graph on the stream."""
        self.use()
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Let go of a recorded graph."""
        self._call("cudaGraphExecDestroy", graph)

    def _copy(self, to: int, source: int, size: int, kind: Any, stream: int) -> None:
        self.use()
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """What the function of that name returns; every one of them answers with an error code first."""
        error, *values = getattr(self._rt, name)(*arguments)
        if int(error) != 0:
            raise self._failure(name, int(error), error)
        return values[0] if len(values) == 1 else values

    def _failure(self, name: str, code: int, error: Any) -> DeviceError | InferenceError:
        text = self._rt.cudaGetErrorString(error)[1]
        words = text.decode() if isinstance(text, bytes) else str(text)
        if code in UNUSABLE:
            return DeviceError(f"`{self.device}` cannot be used: {words}", hint=_DRIVER_HINT)
        if code == OUT_OF_MEMORY:
            return InferenceError(
                f"out of memory on {self.device}",
                where=name,
                hint=ROOM_HINT,
            )
        if code in STICKY:
            return DeviceLostError(f"{self.device} is lost: {words}", where=name, hint=HINT)
        return InferenceError(f"CUDA failed: {words}", where=name)


def find_gpu(device: Device, runtime: Any = None) -> Gpu | None:
    """The GPU at `device`, or None where there is none or nothing here can ask for it."""
    try:
        return Cuda(device, runtime).describe()
    except (MissingError, InferenceError):
        return None
