"""Buffers that runs share: pinned host memory and device memory by tensor name, kept from run to run.

Allocating costs more than copying, and pageable memory copies at half speed: a lane keeps what it was given and only
grows, in powers of two, so that batches of one bucket find their buffers in place.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from demi.errors import DemiError
from demi.runtime.cuda.bindings import Cuda
from demi.tensors import Array, Feeds

SMALLEST = 256
"""Bytes of the smallest buffer: CUDA aligns to as much."""


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of memory and how many bytes it has."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Result:
    """Where an output lies on the device, and how to read it."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Lane:
    """One stream, and the buffers of one run at a time. Owned by one thread between a pool's `take` and `give`."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.stream = cuda.create_stream()
        self._device: dict[str, Block] = {}
        self._pinned: dict[str, Block] = {}

    def send(self, name: str, array: Array) -> int:
        """The device address that a copy of the array is on its way to; it is there once the stream gets there."""
        host = self.pin(name, array)
        address = self.room(name, array.nbytes)
        if array.nbytes:
            self._cuda.copy_in(address, host, array.nbytes, self.stream)
        return address

    def pin(self, name: str, array: Array) -> int:
        """The address of a copy of the array in pinned host memory."""
        block = self._host(name, array.nbytes)
        _view(block)[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return block.address

    def room(self, name: str, size: int) -> int:
        """The address of at least `size` bytes of device memory for a tensor; never null, however small."""
        return _grown(self._device, name, size, self._cuda.allocate, self._cuda.free).address

    def fetch(self, results: Mapping[str, Result]) -> Feeds:
        """The outputs as arrays of their own, after everything on the stream is done."""
        for name, result in results.items():
            address = self.host_room(name, result.nbytes)
            if result.nbytes:
                self._cuda.copy_out(address, result.address, result.nbytes, self.stream)
        self.wait()
        return {name: self.read_host(name, result) for name, result in results.items()}

    def host_room(self, name: str, size: int) -> int:
        """The address of at least `size` bytes of pinned host memory for an output that a runtime writes there."""
        return self._host(f"{name} (out)", size).address

    def read_host(self, name: str, result: Result) -> Array:
        """A copy of what was written into `host_room`; the stream must have been waited for."""
        return _view(self._pinned[f"{name} (out)"])[: result.nbytes].copy().view(result.dtype).reshape(result.shape)

    def wait(self) -> None:
        """Block until everything on this lane's stream is done."""
        self._cuda.wait(self.stream)

    def close(self) -> None:
        """Give all memory and the stream back."""
        for block in self._device.values():
            self._cuda.free(block.address)
        for block in self._pinned.values():
            self._cuda.free_host(block.address)
        self._device.clear()
        self._pinned.clear()
        self._cuda.destroy_stream(self.stream)

    def _host(self, name: str, size: int) -> Block:
        return _grown(self._pinned, name, size, self._cuda.allocate_host, self._cuda.free_host)


class Closable(Protocol):
    """Something that holds on to memory until it is closed."""

    def close(self) -> None: ...


T = TypeVar("T", bound=Closable)


class Pool(Generic[T]):
    """Hands out what only one run may use at a time; makes it when needed, at most `limit`, and waits beyond that."""

    def __init__(self, make: Callable[[], T], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._idle: list[T] = []
        self._all: list[T] = []
        self._change = threading.Condition()
        self._end = weakref.finalize(self, _close_all, self._all)
        self._end.atexit = False  # when the process ends, its driver lets go of everything by itself

    def take(self) -> T:
        """One that nobody uses; the one given back last, whose buffers are the warmest."""
        with self._change:
            while not self._idle and len(self._all) >= self._limit:
                self._change.wait()
            if not self._idle:
                self._idle.append(self._make())
                self._all.append(self._idle[-1])
            return self._idle.pop()

    def give(self, item: T) -> None:
        """Back from a run."""
        with self._change:
            self._idle.append(item)
            self._change.notify()

    def close(self) -> None:
        """Let go of them all; nothing may be in use any more."""
        self._end()


class Lease(Generic[T]):
    """One item of a pool until `end`, which also comes when the lease is forgotten.

    As a context it ends where the block fails, and is kept where the block ends well.
    """

    def __init__(self, pool: Pool[T]) -> None:
        self.item = pool.take()
        self.end = weakref.finalize(self, pool.give, self.item)
        self.end.atexit = False

    def __enter__(self) -> T:
        return self.item

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.end()


def _close_all(items: list[T]) -> None:
    for item in items:
        with suppress(DemiError):  # a device that has failed gives nothing back
            item.close()
    items.clear()


def _grown(
    blocks: dict[str, Block], name: str, size: int, allocate: Callable[[int], int], free: Callable[[int], None]
) -> Block:
    """The block of that name; a larger one in its place when it is too small."""
    block = blocks.get(name)
    if block is not None and block.size >= size:
        return block
    if block is not None:
        del blocks[name]
        free(block.address)
    wanted = max(SMALLEST, 1 << (size - 1).bit_length()) if size else SMALLEST
    blocks[name] = Block(allocate(wanted), wanted)
    return blocks[name]


def _view(block: Block) -> Array:
    return np.ctypeslib.as_array((ctypes.c_uint8 * block.size).from_address(block.address))
