"""Accept TLS connections: handshakes count towards the connection limit and have a timeout."""

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

from demi.server.http.connection_limit import ConnectionLimit

log = logging.getLogger("demi.server")

_NO_LIMIT_S = 86400.0
_RETRY_ACCEPT_S = 0.1
"""Pause after accept has failed, usually for lack of file descriptors."""


class TlsListener:
    """Accepts clients, performs the TLS handshake, and then creates the connection. Owns its tasks, not the socket.

    Has the interface of asyncio's servers, so that uvicorn can close it and wait for it.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        connections: ConnectionLimit,
        timeout_s: float,
    ) -> None:
        self._make = make
        self._context = context
        self._connections = connections
        self._timeout_s = timeout_s or _NO_LIMIT_S
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept(listener))

    def close(self) -> None:
        """Stop accepting clients and cancel handshakes."""
        for task in (self._accepting, *self._tasks):
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until all tasks have ended."""
        await asyncio.wait([self._accepting, *self._tasks])

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.error("a connection could not be accepted: %s", error)
                await asyncio.sleep(_RETRY_ACCEPT_S)
                continue
            client.setblocking(False)
            handshake = Handshake(client, loop.time())
            task = handshake.task = loop.create_task(self._shake_hands(handshake))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._connections.enter(
                handshake, handshake.since
            )  # also beyond the limit: a health check needs a handshake too

    async def _shake_hands(self, handshake: Handshake) -> None:
        def make() -> asyncio.Protocol:
            return HandshakeProtocol(self._make(), leave)

        leave = partial(self._connections.leave, handshake)
        client, handshake.client = handshake.client, None
        assert client is not None  # this runs once
        with contextlib.suppress(OSError):  # the client left, was too slow, or does not speak TLS
            await asyncio.get_running_loop().connect_accepted_socket(
                make, client, ssl=self._context, ssl_handshake_timeout=self._timeout_s
            )
        leave()


@dataclass(slots=True, eq=False)
class Handshake:
    """A client in its TLS handshake, as a member of the connection limit; owns the socket until asyncio takes it over."""

    client: socket.socket | None
    since: float
    task: asyncio.Task[None] | None = None

    def idle_since(self) -> tuple[bool, float]:
        """Count as idle since the start: a real client finishes its handshake quickly."""
        return True, self.since

    def evict(self) -> None:
        """Abort the handshake."""
        if self.client:
            self.client.close()
        if self.task:
            self.task.cancel()


class HandshakeProtocol(asyncio.Protocol):
    """Hands a finished handshake over: it leaves the connection limit before its connection enters it."""

    def __init__(self, protocol: asyncio.Protocol, leave: Callable[[], None]) -> None:
        self._protocol = protocol
        self._leave = leave

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Switch the transport to the real connection."""
        self._leave()
        cast(asyncio.Transport, transport).set_protocol(self._protocol)
        self._protocol.connection_made(transport)
