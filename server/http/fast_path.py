"""Infer requests past ASGI: what comes whole and small is answered by the connection itself.

uvicorn builds a scope, a cycle, an event and two messages for every request, and looks through every header of an
answer for bytes that do not belong there: more work than a small model's run. A request that could need any of it (a
large or compressed body, chunks, an upgrade, one that follows on another without waiting) goes the way of all others,
and everything but infer requests does.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from demi.server.errors import HttpAnswer
from demi.server.http.connection import Connection
from demi.server.http.connection_limit import Crowd
from demi.server.http.types import Headers, Respond, Target
from demi.server.settings import ServeSettings
from demi.server.threads import OFF_LOOP_BYTES

log = logging.getLogger("demi.server")

HOLD_S = 0.1
"""How long the next request of a client that was told to come back later is left unread. Clients that ask again at once,
a hundred times a second each, would take the time of those who wait for an answer."""

_TARGET = re.compile(rb"/v2/models/([^/?#]+)(?:/versions/([^/?#]+))?/infer")
_SLOW = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"})


class Exchange:
    """One request and its answer, where uvicorn expects its own cycle. Belongs to the event loop's thread."""

    __slots__ = (
        "_left",
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
        self._left: asyncio.Future[None] | None = None

    async def read_body(self) -> bytes:
        """The body, which has come; it is not kept."""
        body, self.body = self.body, b""
        return body

    async def gone(self) -> None:
        """Wait until the client goes away; raises ClientDisconnect then."""
        if not self.disconnected:
            self._left = asyncio.get_running_loop().create_future()
            await self._left
        raise ClientDisconnect

    @property
    def message_event(self) -> Exchange:
        """What is to be `set` when the client has gone."""
        return self

    def set(self) -> None:
        """The client has gone, or the connection has been refused."""
        if self.disconnected and self._left and not self._left.done():
            self._left.set_result(None)


class ExpressConnection(Connection):
    """A connection that answers infer requests by `respond`."""

    def __init__(self, respond: Respond, settings: ServeSettings, crowd: Crowd, *rest: Any, **named: Any) -> None:
        super().__init__(settings, crowd, *rest, **named)
        self._respond = respond
        self._most_bytes = min(settings.max_body_bytes, OFF_LOOP_BYTES)
        self._exchange: Exchange | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._own: list[tuple[bytes, bytes]] = []
        self._own_text = ""

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        if self._idle_timer:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    def begin(self) -> None:
        """Decide which way the request goes."""
        self._exchange = self._exchange_of_next()
        if self._exchange is None:
            super().begin()
        else:
            self.cycle = self._exchange  # type: ignore[assignment]  # it has all that uvicorn asks of it

    def on_body(self, body: bytes) -> None:
        """A piece of the body, which is small."""
        if self._exchange is None:
            super().on_body(body)
        else:
            self._exchange.body += body

    def on_message_complete(self) -> None:
        """The request is whole."""
        exchange = self._exchange
        super().on_message_complete()
        if exchange is not None:
            self._exchange = None
            task = self.loop.create_task(self._answer(exchange))
            self.tasks.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        """Forget a task; one that failed, which none should, leaves no client waiting."""
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("an answer could not be written", exc_info=error)
            self.transport.abort()

    def _exchange_of_next(self) -> Exchange | None:
        """The exchange of a request that goes this way; None for any other."""
        previous: RequestResponseCycle | None = self.cycle
        if previous is not None and not previous.response_complete:
            return None
        target = read_target(self.url)
        if target is None or self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        headers = dict(self.headers)
        if len(headers) != len(self.headers):
            return None  # two of one name: whoever looks at both is over there
        length = headers.get(b"content-length")
        if length is None or int(length) > self._most_bytes or not _SLOW.isdisjoint(headers):
            return None
        return Exchange(target, headers, keep_alive=self.parser.should_keep_alive())

    async def _answer(self, exchange: Exchange) -> None:
        answer = await self._respond("POST", exchange.target, exchange.headers, exchange.read_body, exchange.gone)
        if self.flow.write_paused and not exchange.disconnected:
            await self.flow.drain()
        if answer and not exchange.disconnected:
            exchange.keep_alive = exchange.keep_alive and answer.headers.pop("connection", "") != "close"
            exchange.response_started = True
            self.transport.write(self._head(answer, exchange.keep_alive) + answer.body)
        exchange.response_complete = True
        if not exchange.keep_alive:
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
            )  # so that they do not all come at once

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _check_idle(self) -> None:
        """Close the connection where nothing has come for as long as uvicorn would wait: one timer for many answers."""
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        self._idle_timer = None
        cycle: object = self.cycle
        if left > 0 or self._received or not self.cycle.response_complete:
            self._idle_timer = self.loop.call_later(max(left, 1.0), self._check_idle)
        elif isinstance(cycle, Exchange):  # after any other answer uvicorn's own timer runs
            self.timeout_keep_alive_handler()

    def _head(self, answer: HttpAnswer, keep_alive: bool) -> bytes:
        """Status line and headers. Their values are the server's own, or have been found fit for a header."""
        own = self.server_state.default_headers  # a list that is replaced once a second
        if own is not self._own:
            self._own, self._own_text = own, "".join([f"{_text(name)}: {_text(value)}\r\n" for name, value in own])
        lines = "".join([f"{name}: {value}\r\n" for name, value in answer.headers.items()])
        end = "\r\n" if keep_alive else "connection: close\r\n\r\n"
        text = f"{self._own_text}{lines}content-length: {len(answer.body)}\r\n{end}"
        return STATUS_LINE[answer.status] + text.encode("latin-1")


@lru_cache(256)
def read_target(url: bytes) -> Target | None:
    """Model and version of an infer path, each percent-decoded once; None for any other, and where it has a query."""
    match = _TARGET.fullmatch(url)
    if match is None:
        return None
    name, version = match.groups()
    return _decoded(name), None if version is None else _decoded(version)


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _decoded(segment: bytes) -> str:
    return unquote_to_bytes(segment).decode("utf-8", "replace")


def connection_factory(settings: ServeSettings, respond: Respond | None, crowd: Crowd) -> Any:
    """What makes the connections of a server with these settings, as uvicorn calls it; all the way of all others where
    there is no `respond`."""
    if respond:
        return partial(ExpressConnection, respond, settings, crowd)
    return partial(Connection, settings, crowd)
