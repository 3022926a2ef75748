"""How busy a device is with live requests, for work that must not get in their way."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterator

from demi.runtime.base import Device

QUIET_S = 0.005
"""How long a device must have had nothing to do to count as idle."""


class Activity:
    """Counts the live requests of all models on one device. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._live = 0
        self._came = 0
        self._idle: list[asyncio.Future[None]] = []

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return self._live > 0

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """A live request for the length of the block."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """A live request comes."""
        self._live += 1
        self._came += 1

    def end(self) -> None:
        """A live request has its answer."""
        self._live -= 1
        if not self._live and self._idle:
            waiting, self._idle = self._idle, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    async def idle(self, timeout_s: float) -> bool:
        """Wait until no live request has come for `QUIET_S`, at most so long; whether there was such a moment.

        Clients that send their next request when they have an answer leave moments between two: those do not count.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await self._no_live()
                    came = self._came
                    await asyncio.sleep(QUIET_S)
                    if came == self._came:
                        return True
        except TimeoutError:
            return False

    async def _no_live(self) -> None:
        while self.busy:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(future)
            await future


@functools.cache
def activity_of(device: Device) -> Activity:
    """The activity of a device: one for the whole process, since a device is one for the whole process."""
    return Activity()
