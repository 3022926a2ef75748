"""The little of ASGI that Demi speaks itself: reading a bounded body and sending an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from server.errors import BodyTooLargeError, HttpAnswer


def read_headers(scope: Scope) -> dict[bytes, bytes]:
    """The request's headers by their lower-case names; of several with one name, the last."""
    return dict(scope["headers"])


async def read_body(receive: Receive, headers: dict[bytes, bytes], limit: int) -> bytes:
    """The whole body; BodyTooLargeError as soon as it is known to pass `limit` bytes.

    Raises ClientDisconnect when the client leaves before it has sent everything.
    """
    if int(headers.get(b"content-length", b"0")) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


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
    return BodyTooLargeError(f"the body is larger than {limit} bytes", hint="the server's limit is --max-body")
