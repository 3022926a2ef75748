"""Bytes that requests hold, all of them together, and how much of them there may be.

Every request has limits of its own; this one is for many that are each within theirs. What is small is not counted: the
number of connections bounds it.
"""

from __future__ import annotations

import threading

from demi.server.errors import OverloadedError

SMALLEST = 65536
"""Bodies of at most so many bytes are not counted."""


class InFlight:
    """How many bytes are held now. Any thread may use it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    def lease(self) -> Lease:
        """Room for one request, empty at first; what it took is given back at the end of the block."""
        return Lease(self)

    def take(self, size: int) -> None:
        """Hold so many bytes more; OverloadedError, and nothing is held, where there is no room for them."""
        with self._lock:
            if self._held + size > self._most:
                raise OverloadedError(
                    f"the requests under way hold {self._held} of {self._most} bytes; the server's limit is --max-in-flight"
                )
            self._held += size

    def give_back(self, size: int) -> None:
        """Hold so many bytes less."""
        with self._lock:
            self._held -= size


class Lease:
    """What one request holds, for the length of a block. A request is in one place at a time, and so is its lease."""

    __slots__ = ("_in_flight", "_size")

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self._size = 0

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def add(self, size: int) -> None:
        """Hold so many bytes more; OverloadedError where there is no room for them."""
        self._in_flight.take(size)
        self._size += size

    def end(self) -> None:
        """Give everything back; a second time does nothing."""
        size, self._size = self._size, 0
        if size:
            self._in_flight.give_back(size)


NO_LIMIT = InFlight(2**63)
"""For whoever asks without a server around."""
