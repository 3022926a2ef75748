"""TLS handshakes before they are connections: counted like those, and not waited for longer than any other client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

from demi.server.http.connection_limit import Crowd

log = logging.getLogger("demi.server")

_NO_LIMIT_S = 86400.0
_PAUSE_S = 0.1
"""After a failure to accept: most often there are no files left, and some will be closed."""


class Door:
    """Accepts clients, agrees with each on keys, and makes its connection then. Owns its tasks, not the socket.

    uvicorn closes it and waits for it, as for any server of an event loop.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        crowd: Crowd,
        timeout_s: float,
    ) -> None:
        self._make = make
        self._context = context
        self._crowd = crowd
        self._timeout_s = timeout_s or _NO_LIMIT_S
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept(listener))

    def close(self) -> None:
        """Let nobody in any more."""
        for task in (self._accepting, *self._tasks):
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until the last handshake has ended."""
        await asyncio.wait([self._accepting, *self._tasks])

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.error("a connection could not be accepted: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            client.setblocking(False)
            handshake = Handshake(client, loop.time())
            task = handshake.task = loop.create_task(self._agree(handshake))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._crowd.enter(handshake, handshake.since)  # in the reserve there is time for a handshake as well

    async def _agree(self, handshake: Handshake) -> None:
        def make() -> asyncio.Protocol:
            return Arrival(self._make(), leave)

        leave = partial(self._crowd.leave, handshake)
        client, handshake.client = handshake.client, None
        assert client is not None  # this runs once
        with contextlib.suppress(OSError):  # the client's affair: it left, took too long, or speaks something else
            await asyncio.get_running_loop().connect_accepted_socket(
                make, client, ssl=self._context, ssl_handshake_timeout=self._timeout_s
            )
        leave()


@dataclass(slots=True, eq=False)
class Handshake:
    """One of the crowd, until its connection takes its place; its socket is its own until the event loop has it."""

    client: socket.socket | None
    since: float
    task: asyncio.Task[None] | None = None

    def idle_since(self) -> tuple[bool, float]:
        """Since it began: a client that is there has done with it in a moment."""
        return True, self.since

    def give_way(self) -> None:
        """Close."""
        if self.client:
            self.client.close()
        if self.task:
            self.task.cancel()


class Arrival(asyncio.Protocol):
    """Where a handshake ends: it leaves the crowd before its connection enters it."""

    def __init__(self, protocol: asyncio.Protocol, leave: Callable[[], None]) -> None:
        self._protocol = protocol
        self._leave = leave

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand over."""
        self._leave()
        cast(asyncio.Transport, transport).set_protocol(self._protocol)
        self._protocol.connection_made(transport)
