"""Reusable buffers: pinned host memory and device memory by tensor name, kept from run to run.

Allocating costs more than copying, and pageable memory copies at half speed. A lane therefore keeps its buffers, and
grows them to powers of two, so that batches of the same bucket reuse them.
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
"""Bytes of the smallest buffer: the alignment of CUDA's allocations."""


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of memory: address and size in bytes."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Result:
    """Address, shape and dtype of an output on the device."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        """Return its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Lane:
    """A CUDA stream with the buffers of one run. Owned by one thread between a pool's `take` and `give`."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.stream = cuda.create_stream()
        self._device: dict[str, Block] = {}
        self._pinned: dict[str, Block] = {}

    def send(self, name: str, array: Array) -> int:
        """Enqueue a copy of the array to the device, and return the address where it will be."""
        host = self.pin(name, array)
        address = self.reserve(name, array.nbytes)
        if array.nbytes:
            self._cuda.copy_in(address, host, array.nbytes, self.stream)
        return address

    def pin(self, name: str, array: Array) -> int:
        """Copy the array to pinned host memory, and return the address."""
        block = self._host(name, array.nbytes)
        _view(block)[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return block.address

    def reserve(self, name: str, size: int) -> int:
        """Return the address of at least `size` bytes of device memory for a tensor; never null, even for 0 bytes."""
        return _grown(self._device, name, size, self._cuda.allocate, self._cuda.free).address

    def fetch(self, results: Mapping[str, Result]) -> Feeds:
        """Copy the outputs to new arrays, once all work on the stream is done."""
        for name, result in results.items():
            address = self.reserve_host(name, result.nbytes)
            if result.nbytes:
                self._cuda.copy_out(address, result.address, result.nbytes, self.stream)
        self.wait()
        return {name: self.read_host(name, result) for name, result in results.items()}

    def reserve_host(self, name: str, size: int) -> int:
        """Return the address of at least `size` bytes of pinned host memory for an output that a runtime writes there."""
        return self._host(f"{name} (out)", size).address

    def read_host(self, name: str, result: Result) -> Array:
        """Return a copy of an output in the memory from `reserve_host`; the stream must be done."""
        return _view(self._pinned[f"{name} (out)"])[: result.nbytes].copy().view(result.dtype).reshape(result.shape)

    def wait(self) -> None:
        """Block until all work on this lane's stream is done."""
        self._cuda.wait(self.stream)

    def close(self) -> None:
        """Free all memory and destroy the stream."""
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
    """An object that holds memory until it is closed."""

    def close(self) -> None: ...


T = TypeVar("T", bound=Closable)


class Pool(Generic[T]):
    """Pool of items for one run each: creates up to `limit` on demand, then `take` blocks until one is given back."""

    def __init__(self, make: Callable[[], T], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._idle: list[T] = []
        self._all: list[T] = []
        self._change = threading.Condition()
        self._end = weakref.finalize(self, _close_all, self._all)
        self._end.atexit = False  # at the end of a process, the driver frees everything itself

    def take(self) -> T:
        """Return an idle item: the one given back last, whose buffers are most likely in caches."""
        with self._change:
            while not self._idle and len(self._all) >= self._limit:
                self._change.wait()
            if not self._idle:
                self._idle.append(self._make())
                self._all.append(self._idle[-1])
            return self._idle.pop()

    def give(self, item: T) -> None:
        """Give an item back after a run."""
        with self._change:
            self._idle.append(item)
            self._change.notify()

    def close(self) -> None:
        """Close all items; none may be in use."""
        self._end()


class Lease(Generic[T]):
    """One item of a pool until `end` is called or the lease is garbage-collected.

    As a context manager, it ends when the block raises, and continues otherwise.
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
        with suppress(DemiError):  # nothing can be freed on a failed device
            item.close()
    items.clear()


def _grown(
    blocks: dict[str, Block], name: str, size: int, allocate: Callable[[int], int], free: Callable[[int], None]
) -> Block:
    """Return the block of that name, replaced by a larger one when it is too small."""
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
