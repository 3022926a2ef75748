"""One client connection with its limits: how large its headers, how slow its bytes, how many of its kind.

A request that comes in one piece starts no timer and makes no object: the limits cost it a few comparisons. Only a
client that owes something is watched: the rest of a request, or the reading of an answer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from demi.server.errors import error_body
from demi.server.http.connection_limit import Crowd, Place
from demi.server.http.header_checks import RefusedHeadError, check_head, path_of, without_upgrade
from demi.server.keys import OPEN_PATHS
from demi.server.settings import BYTES_PER_SECOND, ServeSettings

log = logging.getLogger("demi.access")


_DONE, _HEADERS, _BODY = range(3)
"""What a client owes of its newest request: nothing, its headers, or its body."""

RETRY = b"retry-after: 1\r\n"


_HEALTH = frozenset(path.encode() for path in OPEN_PATHS)


class HeadersTooLargeError(Exception):
    """Raised into the parser, which then parses no further."""


class CrowdedError(Exception):
    """Raised into the parser for what one connection too many may not ask."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with limits. Owns its timers; belongs to the event loop's thread.

    A client that is beyond a limit is told so once, as `{"error": ...}`, after the answers to what it asked before, and
    its connection is closed.
    """

    def __init__(
        self, settings: ServeSettings, crowd: Crowd, config: Config, server_state: ServerState, **rest: Any
    ) -> None:
        super().__init__(config, server_state, **rest)
        self._crowd = crowd
        self._place = Place.ANYTHING
        self._most = settings.max_connections
        self._header_limit = settings.max_header_bytes
        self._request_limit = 2 * settings.max_body_bytes + settings.max_header_bytes
        self._timeout_s = settings.client_timeout_s
        self._owed = _HEADERS
        self._received = 0
        self._since = 0.0
        self._header_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0
        self._write_timer: asyncio.TimerHandle | None = None
        self._last_word = b""
        self._idle_since = 0.0
        self._why_refused = ""
        self._upgrading = False

    # --- what the event loop tells ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection in; where there are too many, one that is idle gives way, or this one may ask for health."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._place = self._crowd.enter(self, self._idle_since)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and watch a client whose request is not whole yet."""
        if self.transport.is_closing() or self._last_word:
            return
        self._received += len(data)
        self._header_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        self._hold_to_limits()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._crowd.leave(self)
        self._rest()
        self._stop_write_timer()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Go on with the next request; where it was refused, say so."""
        was_last = not self.pipeline
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self._last_word and was_last and not self.transport.is_closing():
            self._say_last_word()

    def pause_writing(self) -> None:
        """Watch a client that does not read its answer."""
        super().pause_writing()
        if self._timeout_s and self._write_timer is None:
            self._unread = self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(self._timeout_s, self._check_reader)

    def resume_writing(self) -> None:
        """It reads."""
        self._stop_write_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that nobody uses, at once where its client has not even read the last answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    # --- what the crowd asks ---------------------------------------------------------------------------------------

    def idle_since(self) -> tuple[bool, float] | None:
        """Since when it waits for a request, after whether some of its headers have come; None where it is busy."""
        is_busy = self._owed == _BODY or self._last_word or self.transport.is_closing()
        if is_busy or (self.cycle is not None and not self.cycle.response_complete):
            return None
        return bool(self._received), self._idle_since

    def give_way(self) -> None:
        """Close, for another; whoever was only let in to ask for health is told why."""
        if self._place is Place.HEALTH and not self._last_word and not self.transport.is_closing():
            self._refuse_crowd()
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    # --- what the parser tells -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._owed = _HEADERS
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its headers are there: they are checked before anything is made of them."""
        self._upgrading = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._upgrading:
            return  # the parser pauses here, and is given the same headers without the upgrade
        self._check_headers()
        self.begin()
        self._owed = _BODY

    def begin(self) -> None:
        """Go on with a request whose headers are fine."""
        super().on_headers_complete()
        if self._place is Place.HEALTH:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """It is whole."""
        if self._upgrading:
            return
        self._owed = _DONE
        self._received = self._header_bytes = 0
        super().on_message_complete()

    def _parse(self, data: bytes) -> None:
        """Let the parser have what came, and answer what it cannot read."""
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("")

    def _feed(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        while True:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as pause:
                rest = memoryview(rest)[pause.args[0] :]
                self._go_on_without_upgrade()

    def _go_on_without_upgrade(self) -> None:
        """Read the request as if it had not asked for another protocol, which a server is free to do (RFC 9110, 7.8).

        The parser itself would take what follows for that other protocol, and then for the next request: a body too.
        """
        parser, self.parser = self.parser, httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        head = without_upgrade(parser.get_method(), self.url, parser.get_http_version(), self.headers)
        self.parser.feed_data(head)

    def _check_headers(self) -> None:
        """Raise into the parser what is wrong with them; their size is looked at only where what came was larger."""
        if self._header_bytes > self._header_limit and self._size_of_headers() > self._header_limit:
            raise HeadersTooLargeError
        try:
            check_head(self.parser.get_method(), self.parser.get_http_version(), self.headers)
            self.url = path_of(self.url)
        except RefusedHeadError as error:
            self._why_refused = str(error)
            raise
        if self._place is Place.HEALTH and self.url not in _HEALTH:
            raise CrowdedError

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, in the form that every error has."""
        if self._owed == _HEADERS and self._header_bytes > self._header_limit:
            self._refuse_headers()
        elif self._owed == _HEADERS and self._place is Place.HEALTH:
            self._refuse_crowd()
        else:
            self._refuse(400, self._why_refused or "the request is not valid HTTP")

    # --- limits ----------------------------------------------------------------------------------------------------

    def _hold_to_limits(self) -> None:
        if self._last_word:
            self._rest()
        elif self._owed == _HEADERS and self._header_bytes > self._header_limit:
            self._refuse_headers()
        elif self._received > self._request_limit:  # what a body beyond --max-body is cut off at, trailers included
            self._refuse(413, f"the request is larger than {self._request_limit} bytes")
        elif self._owed:
            self._watch()
        elif self._timer:
            self._rest()

    def _watch(self) -> None:
        if self._timer is None and self._timeout_s and not self.transport.is_closing():
            self._since = self.loop.time()
            self._timer = self.loop.call_later(self._timeout_s, self._check_sender)

    def _rest(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _check_sender(self) -> None:
        """Called when a client's time to send a request is up."""
        self._timer = None
        if self.transport.is_closing() or self._last_word:
            return
        if self._busy:  # it is the server that does not read on, or owes an answer first
            self._watch()
        elif self._owed == _BODY and not self.cycle.response_complete and (left := self._time_left()) > 0:
            self._timer = self.loop.call_later(left, self._check_sender)
        elif self._received:
            what = "headers" if self._owed == _HEADERS else "body"
            self._refuse(408, f"the request's {what} did not arrive in time; the limit is --client-timeout")
        else:
            self.transport.close()

    @property
    def _busy(self) -> bool:
        return self.flow.read_paused or self._earlier

    @property
    def _earlier(self) -> bool:
        """Whether the answer to an earlier request of this connection is still to come."""
        if self._owed == _BODY:  # the newest request is the one that is being read
            return bool(self.pipeline)
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _has_answered(self) -> bool:
        """Whether the request whose body is missing has its answer already: an error that needed no body."""
        return self._owed == _BODY and self.cycle.response_started

    def _time_left(self) -> float:
        return self._since + self._timeout_s + self._received / BYTES_PER_SECOND - self.loop.time()

    def _check_reader(self) -> None:
        """Called when a client has left a full buffer waiting: cut it off unless it has read enough since."""
        self._write_timer = None
        unread = self.transport.get_write_buffer_size()
        if self._unread - unread < self._timeout_s * BYTES_PER_SECOND:
            log.info("a client did not read its answer: client=%s unread=%d", self.client, unread)
            self.transport.abort()
        else:
            self._unread = unread
            self._write_timer = self.loop.call_later(self._timeout_s, self._check_reader)

    def _stop_write_timer(self) -> None:
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None

    def _size_of_headers(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse_headers(self) -> None:
        self._refuse(431, f"the headers are larger than {self._header_limit} bytes; the limit is --max-header")

    def _refuse_crowd(self) -> None:
        self._refuse(503, f"there are more than {self._most} connections; the limit is --max-connections", RETRY)

    def _refuse(self, status: int, text: str, headers: bytes = b"") -> None:
        """Tell the client why, close the connection, and let an application that waits for its body know.

        Nothing more is read; what the client has asked before is answered first.
        """
        log.info("refused: status=%d client=%s reason=%s", status, self.client, text)
        body = error_body(text)
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
        self._last_word = STATUS_LINE[status] + head + headers + b"\r\n" + body
        if self._earlier:
            self.flow.pause_reading()
            if self._owed == _BODY:
                self.pipeline.popleft()  # the newest
        else:
            self._say_last_word()

    def _say_last_word(self) -> None:
        if not self._has_answered:
            self.transport.write(self._last_word)
        self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
