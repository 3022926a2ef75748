"""What stands before every request: which pages may ask, API keys, and the access log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demi.server.errors import ForbiddenError, HttpAnswer, UnauthorizedError, error_answer
from demi.server.http.asgi import read_headers, send_answer
from demi.server.http.origins import Origins
from demi.server.http.types import Headers, ReadBody, Respond, Target
from demi.server.keys import OPEN_PATHS, Keys
from demi.server.request_ids import HEADER, sent_id
from demi.server.scheduling.deadlines import Gone

log = logging.getLogger("demi.access")

_ID_HEADER = HEADER.encode()


class Gate:
    """Lets requests pass by the pages they come from and the keys they hold, before anything else is looked at."""

    def __init__(self, keys: Keys | None, origins: Origins) -> None:
        self._keys = keys
        self._origins = origins

    def check(self, method: str, headers: Headers, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise ForbiddenError for a page of another site, and UnauthorizedError for whoever has no key.

        `pairs` are all the headers, those of one name too.
        """
        self._origins.check(method, headers)
        if self._keys:
            self._keys.authorize(pairs)

    def over_asgi(self, app: ASGIApp) -> ASGIApp:
        """An application that is reached through this gate; health is open."""

        async def check(scope: Scope, receive: Receive, send: Send) -> None:
            headers = read_headers(scope)
            try:
                if scope["path"] not in OPEN_PATHS:
                    self.check(scope["method"], headers, scope["headers"])
            except (ForbiddenError, UnauthorizedError) as error:
                await send_answer(send, error_answer(error, sent_id(headers)))
            else:
                await app(scope, receive, send)

        return check

    def over_connection(self, respond: Respond) -> Respond:
        """What answers infer requests that pass this gate; a request with two headers of one name comes over ASGI."""

        async def check(method: str, target: Target, headers: Headers, body: ReadBody, gone: Gone) -> HttpAnswer | None:
            try:
                self.check(method, headers, headers.items())
            except (ForbiddenError, UnauthorizedError) as error:
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


def returning_ids(app: ASGIApp) -> ASGIApp:
    """An application whose answers carry the id that the client sent."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        sent = sent_id(dict(scope["headers"])) if scope["type"] == "http" else ""

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", []) if pair[0] != _ID_HEADER]
                message = {**message, "headers": [*headers, (_ID_HEADER, sent.encode())]}
            await send(message)

        await app(scope, receive, send_with_id if sent else send)

    return answer
