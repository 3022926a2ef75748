"""The CUDA runtime: device memory, pinned host memory, copies, streams and graphs of one GPU.

The only module that imports cuda.bindings. Addresses are `int`, which every runtime takes.
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
from demi.runtime.cuda.failures import DEVICE_LOST_HINT, OUT_OF_MEMORY_HINT, STICKY

OUT_OF_MEMORY = 2
UNUSABLE = frozenset({3, 34, 35, 36, 46, 100, 101, 802, 803, 804, 805})
"""Codes for a device or driver that cannot be used: not initialized, a stub library, driver too old, function too new for
it, device taken, no device, no such device, not ready, version mismatch, no compatibility package, no MPS server."""

_DRIVER_HINT = "check `nvidia-smi`: CUDA 13 needs driver r580 or newer; or use --device cpu"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU and its driver, as the CUDA runtime describes them."""

    name: str
    capability: tuple[int, int]
    """Compute capability, such as (9, 0)."""
    driver_cuda: tuple[int, int]
    """The newest CUDA version that the driver supports, such as (13, 0)."""
    memory_bytes: int


def require_cuda() -> Any:
    """Import the CUDA runtime's bindings. Raises PackageError when they are not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise missing_package("cuda-bindings", "gpu") from error
    return runtime


class Cuda:
    """One GPU: memory, copies and streams. Thread-safe: each call makes the device the calling thread's current one.

    `runtime` is the bindings module, or a fake with the same functions.
    """

    def __init__(self, device: Device, runtime: Any = None) -> None:
        self.device = device
        self._rt = runtime if runtime is not None else require_cuda()
        self._thread = threading.local()

    def describe(self) -> Gpu:
        """Describe this GPU. Raises DeviceError when there is no GPU of this index, no driver, or one that is too old."""
        count = self._call("cudaGetDeviceCount")
        if self.device.index >= count:
            raise DeviceError(
                f"`{self.device}` was requested, but this machine has {count} GPU{'s' if count != 1 else ''}",
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
        """Make this GPU the calling thread's current one, and exempt the thread from other threads' graph captures.

        ONNX Runtime captures in global mode, in which CUDA refuses memory to all other threads of the process, except
        those that have set their own capture mode to thread-local.
        """
        self._call("cudaSetDevice", self.device.index)
        if not getattr(self._thread, "is_apart", False):
            mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._call("cudaThreadExchangeStreamCaptureMode", mode)
            self._thread.is_apart = True

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes of device memory, over all processes."""
        self.use()
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes on the device and return their address."""
        self.use()
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Free device memory."""
        self.use()
        self._call("cudaFree", address)

    def allocate_host(self, size: int) -> int:
        """Allocate `size` bytes of pinned host memory, which is copied without a staging buffer; return their address."""
        self.use()
        return int(self._call("cudaMallocHost", size))

    def free_host(self, address: int) -> None:
        """Free pinned host memory."""
        self._call("cudaFreeHost", address)

    def create_stream(self) -> int:
        """Create a stream that does not synchronize with the default stream, and return its handle."""
        self.use()
        return int(self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)

    def wait(self, stream: int) -> None:
        """Block the calling thread until all work on the stream is done."""
        self.use()
        self._call("cudaStreamSynchronize", stream)

    def copy_in(self, to: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy from pinned host memory to the device."""
        self._copy(to, source, size, self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def copy_out(self, to: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy from the device to pinned host memory."""
        self._copy(to, source, size, self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Capture what `work` enqueues on the stream, and return the graph, which `launch` runs any number of times."""
        self.use()
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            with suppress(DemiError):  # in any case the stream must leave capture mode
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream))
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        """Enqueue a captured graph."""
        self.use()
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Destroy a captured graph."""
        self._call("cudaGraphExecDestroy", graph)

    def _copy(self, to: int, source: int, size: int, kind: Any, stream: int) -> None:
        self.use()
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime, and return its values behind the error code. Raises on an error."""
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
                hint=OUT_OF_MEMORY_HINT,
            )
        if code in STICKY:
            return DeviceLostError(f"{self.device} is lost: {words}", where=name, hint=DEVICE_LOST_HINT)
        return InferenceError(f"CUDA failed: {words}", where=name)


def find_gpu(device: Device, runtime: Any = None) -> Gpu | None:
    """Return the GPU at `device`; None where there is none or CUDA's bindings are not installed."""
    try:
        return Cuda(device, runtime).describe()
    except (MissingError, InferenceError):
        return None
