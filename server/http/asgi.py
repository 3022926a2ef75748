"""The little of ASGI that Demi speaks itself: reading a bounded body and sending an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from io import BytesIO

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from demi.server.errors import BodyTooLargeError, HttpAnswer
from demi.server.memory_limit import NO_LIMIT, SMALLEST, Lease

SMALL_BODY = 2**17
"""The largest body of any request but those with tensors: a few words are all that it has to say."""


def read_headers(scope: Scope) -> dict[bytes, bytes]:
    """The request's headers by their lower-case names; of several with one name, the last."""
    return dict(scope["headers"])


async def read_body(receive: Receive, headers: dict[bytes, bytes], limit: int, lease: Lease) -> bytes:
    """The whole body; BodyTooLargeError as soon as it is known to pass `limit` bytes.

    The lease takes room for it as it comes, and raises OverloadedError where there is none. Raises ClientDisconnect
    when the client leaves before it has sent everything.
    """
    if int(headers.get(b"content-length", b"0")) > limit:
        raise _too_large(limit)
    whole = BytesIO()  # pieces to be joined would be there twice
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
        if size > SMALLEST:
            lease.add(len(chunk))
        whole.write(chunk)
        if not more:
            return whole.getvalue()


async def read_small_body(request: Request) -> bytes:
    """The body of a request that is no inference; BodyTooLargeError for one of more than 128 KiB."""
    headers = read_headers(request.scope)
    return await read_body(request.receive, headers, SMALL_BODY, NO_LIMIT.lease())


def gone(receive: Receive) -> Callable[[], Awaitable[None]]:
    """What waits, once the body has been read, until the client goes away, and raises ClientDisconnect then."""

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise ClientDisconnect

    return wait


async def send_answer(send: Send, answer: HttpAnswer) -> None:
    """Send an answer in two messages."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _too_large(limit: int) -> BodyTooLargeError:
    hint = "" if limit == SMALL_BODY else "the server's limit is --max-body"
    return BodyTooLargeError(f"the body is larger than {limit} bytes", hint=hint)
