"""The application inside Ray's own HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from demi.server.http.app import create_app
from demi.server.http.inside_ray import inside_ray
from demi.server.models.repository import Repository
from demi.server.settings import ServeSettings

APP = inside_ray(create_app(Repository([]), ServeSettings()))


def exchange(scope: dict[str, Any], *received: dict[str, Any]) -> list[MutableMapping[str, Any]]:
    """Return what the application sends for a scope and the messages that it receives."""
    waiting = iter(received)
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(waiting)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(APP(scope, receive, send))
    return sent


def test_start_and_end_are_confirmed():
    """The models are loaded before, and closed afterwards."""
    sent = exchange({"type": "lifespan"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})

    assert ["lifespan.startup.complete", "lifespan.shutdown.complete"] == [message["type"] for message in sent]


def test_the_request_id_is_left_to_ray():
    """Ray adds the header itself; twice, clients would read `mine, mine`."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v2/health/live",
        "query_string": b"",
        "headers": [(b"x-request-id", b"mine")],
    }
    start, *_ = exchange(scope, {"type": "http.request"})

    assert 200 == start["status"]
    assert "x-request-id" not in [name.decode() for name, _ in start["headers"]]


def test_ray_finds_no_routes_to_match():
    """Ray would match each request against all of them, before Demi does."""
    assert not hasattr(APP, "routes")
