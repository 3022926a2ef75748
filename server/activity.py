"""How busy a device is with live requests, for work that must not get in their way."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterator

from demi.runtime.base import Device


class Activity:
    """Counts the live requests of all models on one device. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._live = 0
        self._idle: list[asyncio.Future[None]] = []

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return self._live > 0

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """A live request for the length of the block."""
        self._live += 1
        try:
            yield
        finally:
            self._live -= 1
            if not self._live and self._idle:
                waiting, self._idle = self._idle, []
                for future in waiting:
                    if not future.done():
                        future.set_result(None)

    async def idle(self, timeout_s: float) -> bool:
        """Wait for a moment without live requests, at most so long; whether there was one."""
        stop = asyncio.get_running_loop().time() + timeout_s
        while self.busy:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(future)
            try:
                async with asyncio.timeout_at(stop):
                    await future
            except TimeoutError:
                return False
        return True


@functools.cache
def activity_of(device: Device) -> Activity:
    """The activity of a device: one for the whole process, since a device is one for the whole process."""
    return Activity()
