"""The uvicorn server, extended to drain on SIGTERM, to run gRPC beside HTTP, and to watch the repository for changes."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, Protocol

import uvicorn

from demi.server.http.app import DemiApp
from demi.server.http.connection_limit import ConnectionLimit
from demi.server.http.fast_path import connection_factory
from demi.server.http.tls_handshake import TlsListener
from demi.server.models.control import Control
from demi.server.models.repository import Repository
from demi.server.settings import ServeSettings

log = logging.getLogger("demi.server")

_KEEP_ALIVE_S = 75
"""Longer than the connection pools of common clients, so that the client closes an idle connection, not the server."""
_LAST_WRITES_S = 2
"""Time for answers still being written once every request has been answered or given up."""
FOLLOW_S = 1.0
"""Time between looks at the files with the rules for versions, in seconds."""


class SecondServer(Protocol):
    """A server on the same event loop that starts and stops with this one: gRPC."""

    async def start(self) -> None:
        """Start to listen."""

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, and give those in flight `grace_s` seconds."""


class DrainingServer(uvicorn.Server):
    """A uvicorn server that finishes the requests it has admitted.

    On the first signal the models refuse new requests (503, so that a load balancer moves on) while the port stays open.
    The server stops once the last request is answered or `--drain` seconds have passed. A second signal stops it at once.
    `on_listening` is called with the HTTP socket once clients can connect.
    """

    def __init__(
        self,
        app: DemiApp,
        repository: Repository,
        settings: ServeSettings,
        control: Control,
        on_listening: Callable[[socket.socket], None],
        grpc: SecondServer | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._connections = ConnectionLimit(settings.max_connections)
        self._tls = tls
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_factory(settings, app.respond, self._connections),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_LAST_WRITES_S,
            )
        )
        self._repository = repository
        self._recorder = app.recorder
        self._settings = settings
        self._on_listening = on_listening
        self._grpc = grpc
        self._stop_at: float | None = None
        self._control = control
        self._sync_at = time.monotonic() + settings.watch_s
        self._sync: asyncio.Task[None] | None = None
        self._follow_at = time.monotonic() + FOLLOW_S
        self._follow: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen for HTTP and gRPC, then call `on_listening`."""
        await super().startup([] if self._tls else sockets)
        if self._tls and sockets:
            self.servers = [self._tls_listener(listener, self._tls) for listener in sockets]  # type: ignore[misc]
        if self._grpc:
            await self._grpc.start()
        if self._recorder:
            self._recorder.start()
        if sockets:
            self._on_listening(sockets[0])

    def _tls_listener(self, listener: socket.socket, tls: ssl.SSLContext) -> TlsListener:
        """Return a listener that counts TLS handshakes as connections; asyncio's own server would not."""
        kind: Any = self.config.http_protocol_class
        make = partial(kind, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return TlsListener(listener, make, tls, self._connections, self._settings.client_timeout_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let HTTP and gRPC write their last answers at the same time."""
        ends = [super().shutdown(sockets)]
        if self._grpc:
            ends.append(self._grpc.stop(0 if self.force_exit else _LAST_WRITES_S))
        await asyncio.gather(*ends)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain, or stop at once if draining already. Unlike uvicorn's, the signal is not raised again at exit."""
        if self._stop_at is not None:
            self.should_exit = self.force_exit = True
            return
        self._stop_at = time.monotonic() + self._settings.drain_s
        self._repository.drain()

    async def on_tick(self, counter: int) -> bool:
        """Stop once drained, follow the rules for versions, and sync with the repository folder when it is time. uvicorn
        calls this ten times a second."""
        if self._stop_at is not None and not self.should_exit:
            if self._recorder:
                self._recorder.stop()  # ends the streams of the console, which would otherwise hold up the end
            self._stop_if_drained(self._stop_at)
            return await super().on_tick(counter)
        if time.monotonic() >= self._follow_at and (self._follow is None or self._follow.done()):
            self._follow_at = time.monotonic() + FOLLOW_S
            self._follow = asyncio.create_task(self._control.traffic.follow())
        if self._settings.watch_s and time.monotonic() >= self._sync_at and (self._sync is None or self._sync.done()):
            self._sync_at = time.monotonic() + self._settings.watch_s
            self._sync = asyncio.create_task(self._control.sync())
        return await super().on_tick(counter)

    def _stop_if_drained(self, stop_at: float) -> None:
        left, is_late = self._repository.in_flight, time.monotonic() >= stop_at
        if left and is_late:
            log.warning("stopping with %d requests unanswered after %g s", left, self._settings.drain_s)
        self.should_exit = not left or is_late
