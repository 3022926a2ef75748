"""A limit on the bytes that all requests in flight hold together.

Each request has limits of its own; this one protects against many requests that each stay within theirs. Small bodies are
not counted: the limit on connections bounds them.
"""

from __future__ import annotations

import threading

from demi.server.errors import OverloadedError

UNCOUNTED_BYTES = 65536
"""Bodies up to this size are not counted."""


class MemoryLimit:
    """Counts the bytes that requests hold, up to `most`. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes that requests hold now."""
        return self._held

    def reserve(self) -> Reservation:
        """Return an empty reservation for one request; as a context manager it is released at the end of the block."""
        return Reservation(self)

    def take(self, size: int) -> None:
        """Count `size` bytes more; OverloadedError if that would exceed the limit, and then nothing is counted."""
        with self._lock:
            if self._held + size > self._most:
                raise OverloadedError(
                    f"the requests in flight hold {self._held} of {self._most} bytes; the server's limit is --max-in-flight"
                )
            self._held += size

    def give_back(self, size: int) -> None:
        """Count `size` bytes less."""
        with self._lock:
            self._held -= size


class Reservation:
    """The bytes that one request holds. Not thread-safe: a request is handled by one thread at a time."""

    __slots__ = ("_memory_limit", "_size")

    def __init__(self, memory_limit: MemoryLimit) -> None:
        self._memory_limit = memory_limit
        self._size = 0

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def add(self, size: int) -> None:
        """Reserve `size` bytes more; OverloadedError if the limit leaves no room."""
        self._memory_limit.take(size)
        self._size += size

    def release(self) -> None:
        """Return all bytes to the limit; calling it again does nothing."""
        size, self._size = self._size, 0
        if size:
            self._memory_limit.give_back(size)


NO_LIMIT = MemoryLimit(2**63)
"""Never refuses anything; for code that runs without a server."""
