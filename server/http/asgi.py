"""Read bodies and send answers over ASGI, without a framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from io import BytesIO

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from demi.server.errors import BodyTooLargeError
from demi.server.http.answer import HttpAnswer
from demi.server.http.types import Headers
from demi.server.memory_limit import NO_LIMIT, UNCOUNTED_BYTES, Reservation

MAX_SMALL_BODY = 2**17
"""Largest body in bytes of requests without tensors, which are all short."""


def path_of(scope: Scope) -> str:
    """Return the path of a request below the application's own prefix, its `root_path`."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path") or "")


def raw_path(scope: Scope) -> bytes:
    """Return the same path as the client wrote it, percent-encoded."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    prefix = scope.get("root_path")
    return raw.removeprefix(prefix.encode()) if prefix else raw


def read_headers(scope: Scope) -> Headers:
    """Return the headers by lower-case name; of several with the same name, the last."""
    return dict(scope["headers"])


async def read_body(receive: Receive, headers: Headers, limit: int, reservation: Reservation) -> bytes:
    """Read the whole body; BodyTooLargeError as soon as it is known to exceed `limit` bytes.

    Reserves memory as the body arrives, and raises OverloadedError if there is none left. Raises ClientDisconnect if the
    client leaves before sending everything.
    """
    if int(headers.get(b"content-length", b"0")) > limit:
        raise _too_large(limit)
    whole = BytesIO()  # joining a list of chunks would hold them twice
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
        if not more and size == len(chunk):
            return chunk
        if size > UNCOUNTED_BYTES:
            reservation.add(len(chunk))
        whole.write(chunk)
        if not more:
            return whole.getvalue()


async def read_small_body(request: Request) -> bytes:
    """Read the body of a request without tensors; BodyTooLargeError above 128 KiB."""
    headers = read_headers(request.scope)
    return await read_body(request.receive, headers, MAX_SMALL_BODY, NO_LIMIT.reserve())


def wait_for_disconnect(receive: Receive) -> Callable[[], Awaitable[None]]:
    """Return a function that waits until the client disconnects and then raises ClientDisconnect; for after the body."""

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise ClientDisconnect

    return wait


async def send_answer(send: Send, answer: HttpAnswer) -> None:
    """Send an answer."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    headers += [(b"set-cookie", cookie.encode("latin-1")) for cookie in answer.cookies]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _too_large(limit: int) -> BodyTooLargeError:
    hint = "" if limit == MAX_SMALL_BODY else "the server's limit is --max-body"
    return BodyTooLargeError(f"the body is larger than {limit} bytes", hint=hint)
