"""The application as Ray Serve expects it: Ray's own HTTP server is in front of each replica's."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demi.server.request_ids import HEADER

_ID_HEADER = HEADER.encode()


def inside_ray(app: ASGIApp) -> ASGIApp:
    """Return an application for Ray Serve: it answers messages about its start and end, and leaves request ids to Ray.

    Ray gives each request an id, the client's if it sent one, and returns it in a header of its own. The result is a plain
    function, since Ray matches each request against the routes of an application that has some.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != _ID_HEADER]
            await send(message)

        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
        else:
            await app(scope, receive, send_without_id)

    return answer
