"""Fast path: small, complete infer requests are answered on the connection itself, bypassing ASGI.

For each request uvicorn builds a scope, a cycle, an event and two messages, and validates each header of the answer: more
work than running a small model. All other requests take the normal ASGI path: other paths, large, chunked or compressed
bodies, upgrades, and pipelined requests.
"""

from __future__ import annotations

import asyncio
import logging
import random
from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from demi.server.http.answer import HttpAnswer
from demi.server.http.connection import Connection
from demi.server.http.connection_limit import ConnectionLimit
from demi.server.http.target import infer_target
from demi.server.http.types import Headers, Respond, Target
from demi.server.settings import ServeSettings
from demi.server.threads import OFF_LOOP_BYTES

log = logging.getLogger("demi.server")

HOLD_S = 0.1
"""Pause before reading on after an answer with Retry-After. Clients that retry at once, a hundred times a second each, would
take time from those that wait for an answer."""

_ASGI_ONLY = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"})


class FastRequest:
    """One infer request on the fast path, in the place of uvicorn's own RequestResponseCycle. Not thread-safe."""

    __slots__ = (
        "_disconnect",
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "target",
    )

    def __init__(self, target: Target, headers: Headers, *, keep_alive: bool) -> None:
        self.target = target
        self.headers = headers
        self.keep_alive = keep_alive
        self.body = b""
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False
        self._disconnect: asyncio.Future[None] | None = None

    async def read_body(self) -> bytes:
        """Return the body and drop it."""
        body, self.body = self.body, b""
        return body

    async def wait_for_disconnect(self) -> None:
        """Wait until the client disconnects, then raise ClientDisconnect."""
        if not self.disconnected:
            self._disconnect = asyncio.get_running_loop().create_future()
            await self._disconnect
        raise ClientDisconnect

    @property
    def message_event(self) -> FastRequest:
        """Return itself: uvicorn calls `message_event.set()` when the client disconnects."""
        return self

    def set(self) -> None:
        """Wake `wait_for_disconnect`: the client has disconnected, or the connection was refused."""
        if self.disconnected and self._disconnect and not self._disconnect.done():
            self._disconnect.set_result(None)


class FastConnection(Connection):
    """A connection that answers small infer requests with `respond`."""

    def __init__(
        self, respond: Respond, settings: ServeSettings, connections: ConnectionLimit, *rest: Any, **named: Any
    ) -> None:
        super().__init__(settings, connections, *rest, **named)
        self._respond = respond
        self._most_bytes = min(settings.max_body_bytes, OFF_LOOP_BYTES)
        self._request: FastRequest | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._own: list[tuple[bytes, bytes]] = []
        self._own_text = ""

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer."""
        if self._idle_timer:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    def begin_request(self) -> None:
        """Choose between the fast path and ASGI."""
        self._request = self._next_fast_request()
        if self._request is None:
            super().begin_request()
        else:
            self.cycle = self._request  # type: ignore[assignment]  # has every attribute that uvicorn uses

    def on_body(self, body: bytes) -> None:
        """Append a chunk of the body, which is known to be small."""
        if self._request is None:
            super().on_body(body)
        else:
            self._request.body += body

    def on_message_complete(self) -> None:
        """Start to answer the complete request."""
        request = self._request
        super().on_message_complete()
        if request is not None:
            self._request = None
            task = self.loop.create_task(self._answer(request))
            self.tasks.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        """Discard a finished task; if it failed, abort the connection so that the client does not wait."""
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("an answer could not be written", exc_info=error)
            self.transport.abort()

    def _next_fast_request(self) -> FastRequest | None:
        """Return the request if it can take the fast path, else None."""
        previous: RequestResponseCycle | None = self.cycle
        if previous is not None and not previous.response_complete:
            return None
        target = infer_target(self.url)
        if target is None or self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        headers = dict(self.headers)
        if len(headers) != len(self.headers):
            return None  # repeated headers are checked on the ASGI path
        length = headers.get(b"content-length")
        if length is None or int(length) > self._most_bytes or not _ASGI_ONLY.isdisjoint(headers):
            return None
        return FastRequest(target, headers, keep_alive=self.parser.should_keep_alive())

    async def _answer(self, request: FastRequest) -> None:
        answer = await self._respond(
            "POST", request.target, request.headers, request.read_body, request.wait_for_disconnect
        )
        if self.flow.write_paused and not request.disconnected:
            await self.flow.drain()
        if answer and not request.disconnected:
            request.keep_alive = request.keep_alive and answer.headers.pop("connection", "") != "close"
            request.response_started = True
            self.transport.write(self._head(answer, request.keep_alive) + answer.body)
        request.response_complete = True
        if not request.keep_alive:
            self.transport.close()
        if self.pipeline or self.flow.read_paused or self.transport.is_closing():
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._idle_since = self.loop.time()
            if self._idle_timer is None:
                self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._check_idle)
        if answer and "retry-after" in answer.headers:
            self.flow.pause_reading()
            self.loop.call_later(
                HOLD_S * random.uniform(0.5, 1.5), self._read_on
            )  # so that the clients do not all retry at once

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _check_idle(self) -> None:
        """Close the connection once it has been idle as long as uvicorn allows. One timer serves many requests."""
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        self._idle_timer = None
        cycle: object = self.cycle
        if left > 0 or self._received or not self.cycle.response_complete:
            self._idle_timer = self.loop.call_later(max(left, 1.0), self._check_idle)
        elif isinstance(cycle, FastRequest):  # after an answer over ASGI, uvicorn's own timer runs
            self.timeout_keep_alive_handler()

    def _head(self, answer: HttpAnswer, keep_alive: bool) -> bytes:
        """Encode status line and headers. Header values come from the server, or were validated before."""
        own = self.server_state.default_headers  # uvicorn replaces this list once a second
        if own is not self._own:
            self._own, self._own_text = own, _encode_lines(own)
        lines = "".join([f"{name}: {value}\r\n" for name, value in answer.headers.items()])
        end = "\r\n" if keep_alive else "connection: close\r\n\r\n"
        text = f"{self._own_text}{lines}content-length: {len(answer.body)}\r\n{end}"
        return STATUS_LINE[answer.status] + text.encode("latin-1")


def _encode_lines(headers: list[tuple[bytes, bytes]]) -> str:
    return "".join([f"{name.decode('latin-1')}: {value.decode('latin-1')}\r\n" for name, value in headers])


def connection_factory(settings: ServeSettings, respond: Respond | None, connections: ConnectionLimit) -> Any:
    """Return the class that uvicorn is to create connections with; without `respond` there is no fast path."""
    if respond:
        return partial(FastConnection, respond, settings, connections)
    return partial(Connection, settings, connections)
