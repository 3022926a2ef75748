"""A TLS handshake before it is a connection: counted like one, and not waited for longer than any other client."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from server.crowd import Crowd

_NO_LIMIT_S = 86400.0


class Handshake(asyncio.Protocol):
    """Takes a client's socket, and hands it to a protocol of `make` once both have agreed on keys."""

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        crowd: Crowd,
        timeout_s: float,
    ) -> None:
        self._make = make
        self._context = context
        self._crowd = crowd
        self._timeout_s = timeout_s or _NO_LIMIT_S
        self._since = 0.0
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, where there is room."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.pause_reading()  # what comes belongs to the handshake
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._crowd.enter(self, self._since)  # in the reserve there is time for a handshake as well
        self._task = loop.create_task(self._agree(self._transport))

    def idle_since(self) -> tuple[bool, float]:
        """Since it began: a client that is there has done with it in a moment."""
        return True, self._since

    def give_way(self) -> None:
        """Close."""
        if self._transport:
            self._transport.abort()

    async def _agree(self, raw: asyncio.Transport) -> None:
        early, loop = Early(), asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(
                raw, early, self._context, server_side=True, ssl_handshake_timeout=self._timeout_s
            )
        except (OSError, ssl.SSLError):  # the client's affair: it left, took too long, or speaks something else
            raw.abort()
            return
        finally:
            self._crowd.leave(self)
        if transport is None or transport.is_closing():  # asyncio, where the client left in that very moment
            raw.abort()
            return
        protocol = self._make()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if early.data:
            protocol.data_received(bytes(early.data))


class Early(asyncio.Protocol):
    """What a client sends in the moment between its handshake and its connection."""

    def __init__(self) -> None:
        self.data = bytearray()

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.data += data
