"""Activity of a device: how many live requests it has, for background work that must not delay them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterator

from demi.runtime.base import Device

QUIET_S = 0.005
"""A device counts as idle after this many seconds without a live request."""


class Activity:
    """Counter of live requests of all models on one device. Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._live = 0
        self._came = 0
        self._idle: list[asyncio.Future[None]] = []

    @property
    def busy(self) -> bool:
        """Return whether any request waits or runs."""
        return self._live > 0

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Count a live request for the length of the block."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """Count a live request."""
        self._live += 1
        self._came += 1

    def end(self) -> None:
        """Count a live request as answered."""
        self._live -= 1
        if not self._live and self._idle:
            waiting, self._idle = self._idle, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    async def idle(self, timeout_s: float) -> bool:
        """Wait until no live request has come for `QUIET_S`. Return False if that takes longer than `timeout_s`.

        The pause between an answer and the same client's next request is shorter than that, and so does not count.
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
    """Return the activity of a device; the process has one for each device."""
    return Activity()
