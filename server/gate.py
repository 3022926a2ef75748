"""What stands before every request when the settings want it: API keys, and the access log."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.asgi import read_headers, send_answer
from server.errors import HttpAnswer, UnauthorizedError, error_answer
from server.keys import OPEN_PATHS, Keys
from server.patience import Gone
from server.request_ids import HEADER, sent_id
from server.responding import Headers, ReadBody, Respond, Target

log = logging.getLogger("demi.access")


def with_keys(app: ASGIApp, keys: Keys | None) -> ASGIApp:
    """An application that answers 401 to whoever has no key, before it looks at anything else; health is open."""
    if keys is None:
        return app

    async def check(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] not in OPEN_PATHS:
                keys.authorize(scope["headers"])
        except UnauthorizedError as error:
            await send_answer(send, error_answer(error, sent_id(read_headers(scope))))
        else:
            await app(scope, receive, send)

    return check


def keyed(respond: Respond, keys: Keys | None) -> Respond:
    """What answers 401 to whoever has no key, and else as `respond` does."""
    if keys is None:
        return respond

    async def check(method: str, target: Target, headers: Headers, body: ReadBody, gone: Gone) -> HttpAnswer | None:
        try:
            keys.authorize(headers.items())
        except UnauthorizedError as error:
            return error_answer(error, sent_id(headers))
        return await respond(method, target, headers, body, gone)

    return check


def with_access_log(app: ASGIApp, *, on: bool) -> ASGIApp:
    """An application that logs every request once it is answered: method, path, status, milliseconds, client and id."""
    if not on:
        return app

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        status, request_id = 499, ""  # as nginx has it: the client left before its answer
        started = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status, request_id
            if message["type"] == "http.response.start":
                status = message["status"]
                request_id = dict(message["headers"]).get(HEADER.encode(), b"").decode("latin-1")
            await send(message)

        try:
            await app(scope, receive, watch)
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
