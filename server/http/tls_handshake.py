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
_LINGER_S = 2.0
"""Time in which a client that does not speak TLS may read its answer."""
_WORDS = b'{"error":"this port speaks HTTPS: use https:// instead of http://"}'
_PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    % (len(_WORDS), _WORDS)
)
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
        self._has_warned = False
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
            if await sends_plain_http(client, self._timeout_s):
                self._log_plain_http()
                await refuse_plain_http(client)
            else:
                await asyncio.get_running_loop().connect_accepted_socket(
                    make, client, ssl=self._context, ssl_handshake_timeout=self._left_s(handshake)
                )
        leave()

    def _left_s(self, handshake: Handshake) -> float:
        """Return the seconds that a handshake may still take."""
        return max(self._timeout_s - (asyncio.get_running_loop().time() - handshake.since), 0.001)

    def _log_plain_http(self) -> None:
        """Log a client's mistake: a warning the first time, so that clients cannot fill the log."""
        level = logging.DEBUG if self._has_warned else logging.WARNING
        log.log(level, "a client sent plain HTTP to the TLS port and was answered with 400: use https://")
        self._has_warned = True


async def sends_plain_http(client: socket.socket, timeout_s: float) -> bool:
    """Wait for a client's first byte, without taking it, and return whether it begins an HTTP method instead of TLS.

    Closes the socket and raises OSError if the client sends nothing in time.
    """
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    descriptor = client.fileno()

    def note() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(descriptor, note)
    try:
        await asyncio.wait_for(readable, timeout_s)
    except BaseException:  # also if the handshake is aborted
        loop.remove_reader(descriptor)
        client.close()
        raise
    loop.remove_reader(descriptor)
    return client.recv(1, socket.MSG_PEEK).isalpha()


async def refuse_plain_http(client: socket.socket) -> None:
    """Answer 400 in plain HTTP and close the socket once the client has read it."""
    loop = asyncio.get_running_loop()
    with client, contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            await loop.sock_sendall(client, _PLAIN_HTTP)
            client.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(client, 65536):  # closing earlier would reset the connection under the answer
                pass


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
