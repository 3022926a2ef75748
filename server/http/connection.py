"""One client connection, with limits on header size, transfer speed and the number of connections.

A request that arrives in one piece starts no timer and allocates nothing: the limits cost it a few comparisons. Timers run
only while the rest of a request is missing, or while the client does not read its answer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from demi.server.http.answer import error_body
from demi.server.http.connection_limit import Admission, ConnectionLimit
from demi.server.http.header_checks import RefusedHeadError, check_head, path_of, without_upgrade
from demi.server.keys import OPEN_PATHS
from demi.server.settings import BYTES_PER_SECOND, ServeSettings

log = logging.getLogger("demi.access")

_DONE, _HEADERS, _BODY = range(3)
"""The part of the newest request that is still to arrive: nothing, headers, or body."""

_RETRY_LATER = b"retry-after: 1\r\n"
_HEALTH_PATHS = frozenset(path.encode() for path in OPEN_PATHS)


class HeadersTooLargeError(Exception):
    """The headers exceed the limit. Raised inside a parser callback to stop parsing."""


class TooManyConnectionsError(Exception):
    """A connection beyond the limit requests something other than health. Raised inside a parser callback."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with limits. Owns its timers; used on the event loop's thread only.

    A client that exceeds a limit gets the answers to its earlier requests, then one error as `{"error": ...}`, and its
    connection is closed.
    """

    def __init__(
        self,
        settings: ServeSettings,
        connections: ConnectionLimit,
        config: Config,
        server_state: ServerState,
        **rest: Any,
    ) -> None:
        super().__init__(config, server_state, **rest)
        self._connections = connections
        self._admission = Admission.FULL
        self._most = settings.max_connections
        self._header_limit = settings.max_header_bytes
        self._request_limit = 2 * settings.max_body_bytes + settings.max_header_bytes
        self._timeout_s = settings.client_timeout_s
        self._pending = _HEADERS
        self._received = 0
        self._timer_started = 0.0
        self._header_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0
        self._write_timer: asyncio.TimerHandle | None = None
        self._final_response = b""
        self._idle_since = 0.0
        self._refusal = ""
        self._upgrading = False

    # --- callbacks of the event loop -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Register the connection with the limit, which may evict an idle one or admit this one for health checks only."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._admission = self._connections.enter(self, self._idle_since)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Parse the data, and start a timer if the request is incomplete."""
        if self.transport.is_closing() or self._final_response:
            return
        self._received += len(data)
        self._header_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        self._enforce_limits()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers and leave the connection limit."""
        self._connections.leave(self)
        self._cancel_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Continue with the next pipelined request, or send the final error if there is one."""
        was_last = not self.pipeline
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self._final_response and was_last and not self.transport.is_closing():
            self._send_final_response()

    def pause_writing(self) -> None:
        """Start a timer for a client that does not read its answer."""
        super().pause_writing()
        if self._timeout_s and self._write_timer is None:
            self._unread = self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(self._timeout_s, self._check_reader)

    def resume_writing(self) -> None:
        """Stop the timer: the client reads again."""
        self._stop_write_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; abort it if the client has not even read the last answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    # --- for the connection limit ----------------------------------------------------------------------------------

    def idle_since(self) -> tuple[bool, float] | None:
        """Return whether part of a request has arrived, and the time since when it is idle; None if it is busy."""
        is_busy = self._pending == _BODY or self._final_response or self.transport.is_closing()
        if is_busy or (self.cycle is not None and not self.cycle.response_complete):
            return None
        return bool(self._received), self._idle_since

    def evict(self) -> None:
        """Close to make room for another connection; one admitted for health checks only gets an error first."""
        if self._admission is Admission.HEALTH_ONLY and not self._final_response and not self.transport.is_closing():
            self._refuse_connection()
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    # --- callbacks of the parser -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        self._pending = _HEADERS
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check the headers, then begin to handle the request."""
        self._upgrading = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._upgrading:
            return  # the parser pauses; it then gets the same headers without the upgrade
        self._check_headers()
        self.begin_request()
        self._pending = _BODY

    def begin_request(self) -> None:
        """Begin to handle a request whose headers have passed the checks."""
        super().on_headers_complete()
        if self._admission is Admission.HEALTH_ONLY:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        if self._upgrading:
            return
        self._pending = _DONE
        self._received = self._header_bytes = 0
        super().on_message_complete()

    def _parse(self, data: bytes) -> None:
        """Feed the parser; answer 400 if it fails."""
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
                self._parse_without_upgrade()

    def _parse_without_upgrade(self) -> None:
        """Parse the request as if it had not asked for a protocol upgrade, which a server may do (RFC 9110, 7.8).

        The parser alone would treat what follows, the body included, as the other protocol, and then as the next request.
        """
        parser, self.parser = self.parser, httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        head = without_upgrade(parser.get_method(), self.url, parser.get_http_version(), self.headers)
        self.parser.feed_data(head)

    def _check_headers(self) -> None:
        """Raise an error inside the parser if the headers are invalid. Their exact size is computed only if it may be too large."""
        if self._header_bytes > self._header_limit and self._size_of_headers() > self._header_limit:
            raise HeadersTooLargeError
        try:
            check_head(self.parser.get_method(), self.parser.get_http_version(), self.headers)
            self.url = path_of(self.url)
        except RefusedHeadError as error:
            self._refusal = str(error)
            raise
        if self._admission is Admission.HEALTH_ONLY and self.url not in _HEALTH_PATHS:
            raise TooManyConnectionsError

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be parsed with an error in the usual form."""
        if self._pending == _HEADERS and self._header_bytes > self._header_limit:
            self._refuse_headers()
        elif self._pending == _HEADERS and self._admission is Admission.HEALTH_ONLY:
            self._refuse_connection()
        else:
            self._refuse(400, self._refusal or "the request is not valid HTTP")

    # --- limits ----------------------------------------------------------------------------------------------------

    def _enforce_limits(self) -> None:
        if self._final_response:
            self._cancel_timer()
        elif self._pending == _HEADERS and self._header_bytes > self._header_limit:
            self._refuse_headers()
        elif self._received > self._request_limit:  # stops a body far beyond --max-body, trailers included
            self._refuse(413, f"the request is larger than {self._request_limit} bytes")
        elif self._pending:
            self._start_timer()
        elif self._timer:
            self._cancel_timer()

    def _start_timer(self) -> None:
        if self._timer is None and self._timeout_s and not self.transport.is_closing():
            self._timer_started = self.loop.time()
            self._timer = self.loop.call_later(self._timeout_s, self._check_sender)

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _check_sender(self) -> None:
        """Refuse a client whose time to send a request has run out."""
        self._timer = None
        if self.transport.is_closing() or self._final_response:
            return
        if self._server_is_busy:  # the server itself does not read, or an earlier answer comes first
            self._start_timer()
        elif self._pending == _BODY and not self.cycle.response_complete and (left := self._time_left()) > 0:
            self._timer = self.loop.call_later(left, self._check_sender)
        elif self._received:
            part = "headers" if self._pending == _HEADERS else "body"
            self._refuse(408, f"the {part} of the request did not arrive in time; the limit is --client-timeout")
        else:
            self.transport.close()

    @property
    def _server_is_busy(self) -> bool:
        return self.flow.read_paused or self._earlier_pending

    @property
    def _earlier_pending(self) -> bool:
        """Return whether an earlier request on this connection is still unanswered."""
        if self._pending == _BODY:  # the newest request is still being read
            return bool(self.pipeline)
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _already_answered(self) -> bool:
        """Return whether the request whose body is missing was answered already, with an error that needs no body."""
        return self._pending == _BODY and self.cycle.response_started

    def _time_left(self) -> float:
        return self._timer_started + self._timeout_s + self._received / BYTES_PER_SECOND - self.loop.time()

    def _check_reader(self) -> None:
        """Abort the connection of a client that has read too little of its answer since the timer started."""
        self._write_timer = None
        unread = self.transport.get_write_buffer_size()
        if self._unread - unread < self._timeout_s * BYTES_PER_SECOND:
            log.info("aborted a client that does not read its answer: client=%s unread=%d", self.client, unread)
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

    def _refuse_connection(self) -> None:
        self._refuse(503, f"there are more than {self._most} connections; the limit is --max-connections", _RETRY_LATER)

    def _refuse(self, status: int, text: str, headers: bytes = b"") -> None:
        """Send an error and close the connection; an application that waits for the body sees a disconnect.

        Nothing more is read. Earlier requests are answered first.
        """
        log.info("refused: status=%d client=%s reason=%s", status, self.client, text)
        body = error_body(text)
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
        self._final_response = STATUS_LINE[status] + head + headers + b"\r\n" + body
        if self._earlier_pending:
            self.flow.pause_reading()
            if self._pending == _BODY:
                self.pipeline.popleft()  # the newest
        else:
            self._send_final_response()

    def _send_final_response(self) -> None:
        if not self._already_answered:
            self.transport.write(self._final_response)
        self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
