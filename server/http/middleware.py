"""Middleware for all requests: browser origins, API keys, the access log, and request ids."""

from __future__ import annotations

import logging
import time
from collections.abc import Coroutine, Iterable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demi.server.errors import BodyTooLargeError, ForbiddenError, UnauthorizedError
from demi.server.http.answer import HttpAnswer, error_answer
from demi.server.http.asgi import path_of, read_headers, send_answer
from demi.server.http.origins import Origins
from demi.server.http.sign_in import (
    SIGN_OUT,
    answer_sign_in,
    answer_sign_out,
    has_key,
    is_form,
    is_signed_in,
    sign_in_page,
    wants_page,
)
from demi.server.http.types import Headers, ReadBody, Respond, Target
from demi.server.keys import OPEN_PATHS, Keys
from demi.server.request_ids import HEADER, sent_id
from demi.server.scheduling.deadlines import Gone

log = logging.getLogger("demi.access")

_ID_HEADER = HEADER.encode()


class AccessControl:
    """Checks the origin and the API key of each request before anything else."""

    def __init__(self, keys: Keys | None, origins: Origins) -> None:
        self._keys = keys
        self._origins = origins

    def check(self, method: str, headers: Headers, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise ForbiddenError for requests from pages of other sites, and UnauthorizedError without a valid key.

        `pairs` are all headers, repeated ones included. A request without a key may be of a browser that signed in.
        """
        self._origins.check(method, headers)
        if self._keys and (has_key(headers) or not is_signed_in(self._keys, headers)):
            self._keys.authorize(pairs)

    def wrap_asgi(self, app: ASGIApp) -> ASGIApp:
        """Return an ASGI application with these checks; the health paths are open to everyone."""

        async def check(scope: Scope, receive: Receive, send: Send) -> None:
            headers, path = read_headers(scope), path_of(scope)
            try:
                if self._keys and is_form(scope["method"], path):
                    self._origins.check(scope["method"], headers)
                    await send_answer(send, await self._answer_form(self._keys, scope, receive))
                    return
                if path not in OPEN_PATHS:
                    self.check(scope["method"], headers, scope["headers"])
            except ClientDisconnect:
                return
            except (ForbiddenError, UnauthorizedError, BodyTooLargeError) as error:
                is_person = isinstance(error, UnauthorizedError) and wants_page(scope["method"], path, headers)
                answer = sign_in_page(scope, path) if is_person else error_answer(error, sent_id(headers))
                await send_answer(send, answer)
            else:
                await app(scope, receive, send)

        return check

    async def _answer_form(self, keys: Keys, scope: Scope, receive: Receive) -> HttpAnswer:
        """Answer the forms to sign in and out, which need no key."""
        return (
            answer_sign_out(keys, scope) if path_of(scope) == SIGN_OUT else await answer_sign_in(keys, scope, receive)
        )

    def wrap_respond(self, respond: Respond) -> Respond:
        """Return `respond` with these checks. Requests with repeated headers never come here: they take the ASGI path."""

        def check(
            method: str, target: Target, headers: Headers, body: ReadBody, gone: Gone
        ) -> Coroutine[Any, Any, HttpAnswer | None]:
            try:
                self.check(method, headers, headers.items())
            except (ForbiddenError, UnauthorizedError) as error:
                return _refuse(error, headers)
            return respond(method, target, headers, body, gone)

        return check


async def _refuse(error: Exception, headers: Headers) -> HttpAnswer:
    return error_answer(error, sent_id(headers))


def with_access_log(app: ASGIApp, *, on: bool) -> ASGIApp:
    """Return an application that logs each answered request: method, path, status, milliseconds, client and id."""
    if not on:
        return app

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        status, request_id = 499, ""  # nginx's status for a client that disconnected before its answer
        started = time.perf_counter()

        async def record_status(message: Message) -> None:
            nonlocal status, request_id
            if message["type"] == "http.response.start":
                status = message["status"]
                request_id = dict(message["headers"]).get(HEADER.encode(), b"").decode("latin-1")
            await send(message)

        try:
            await app(scope, receive, record_status)
        finally:
            client = ":".join(map(str, scope["client"] or "-"))
            log.info(
                "request: method=%s path=%s status=%d ms=%.3f client=%s request_id=%s",
                scope["method"],
                scope["path"],
                status,
                1000 * (time.perf_counter() - started),
                client,
                request_id or "-",
            )

    return answer


def with_request_id(app: ASGIApp) -> ASGIApp:
    """Return an application that echoes the client's request id in its answers."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        sent = sent_id(dict(scope["headers"])) if scope["type"] == "http" else ""

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", []) if pair[0] != _ID_HEADER]
                message = {**message, "headers": [*headers, (_ID_HEADER, sent.encode())]}
            await send(message)

        await app(scope, receive, send_with_id if sent else send)

    return answer
