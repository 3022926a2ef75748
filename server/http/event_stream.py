"""Generated texts on the wire: as a stream of server-sent events, or as a whole, until the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from demi.server.http.asgi import wait_for_disconnect

T = TypeVar("T")
P = ParamSpec("P")

CLIENT_GONE = 499
"""nginx's status for a client that has left; nobody reads it but the access log."""

HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(StreamingResponse):
    """An answer of server-sent events. Closes its generator when the client has left, which ends what makes the events."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: dict[str, str] | None = None) -> None:
        super().__init__(events, 200, HEADERS | (headers or {}))
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


def event(data: bytes) -> bytes:
    """Return one event; JSON has no line breaks, so that its data is one line."""
    return b"data: %s\n\n" % data


async def begun(stream: AsyncGenerator[T, None], request: Request) -> AsyncGenerator[T, None]:
    """Return a stream whose first item is there: what fails before it is answered as an error, not as an event."""
    first = await until_gone(anext(stream), request)

    async def whole() -> AsyncGenerator[T, None]:
        try:
            yield first
            async for item in stream:
                yield item
        finally:
            await stream.aclose()

    return whole()


async def until_gone(work: Awaitable[T], request: Request) -> T:
    """Return the result of `work`, which is cancelled once the client disconnects; ClientDisconnect is raised then.

    For after the body of the request was read.
    """
    gone = wait_for_disconnect(request.receive)
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        watching.result()  # raises ClientDisconnect
        raise AssertionError("a watcher ends by raising")
    finally:
        working.cancel()
        watching.cancel()


def unless_gone(route: Callable[P, Awaitable[Response]]) -> Callable[P, Awaitable[Response]]:
    """Return a route that ends without an error when its client has left."""

    @wraps(route)
    async def answered(*args: P.args, **options: P.kwargs) -> Response:
        try:
            return await route(*args, **options)
        except ClientDisconnect:
            return Response(b"", CLIENT_GONE)

    return answered
