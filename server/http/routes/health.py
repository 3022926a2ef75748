"""Liveness and readiness of the server."""

from __future__ import annotations

from fastapi import APIRouter, Request

from demi.server.errors import UnauthorizedError, UnavailableError
from demi.server.http.routes.responses import NOT_READY
from demi.server.keys import Keys
from demi.server.models.repository import Repository
from demi.server.protocol.schemas import ServerLive, ServerReady


def health_routes(repository: Repository, keys: Keys | None = None) -> APIRouter:
    """Return the routes `/v2/health/live` and `/v2/health/ready`, with short aliases for container probes.

    Without one of the `keys`, a client learns whether the server is ready but not which model is not.
    """
    router = APIRouter(tags=["health"])

    @router.get("/v2/health/live")
    @router.get("/health/live", include_in_schema=False)
    async def live() -> ServerLive:
        """Answer as long as the process runs."""
        return ServerLive(live=True)

    @router.get("/v2/health/ready", responses=NOT_READY)
    @router.get("/health/ready", include_in_schema=False, responses=NOT_READY)
    async def ready(request: Request) -> ServerReady:
        """Answer 200 if all models are loaded and the server is not shutting down, else 503."""
        if reason := repository.reason:
            is_known = _is_authorized(keys, request)
            raise UnavailableError(f"the server is not ready: {reason}" if is_known else "the server is not ready")
        return ServerReady(ready=True)

    return router


def _is_authorized(keys: Keys | None, request: Request) -> bool:
    try:
        if keys:
            keys.authorize(request.scope["headers"])
    except UnauthorizedError:
        return False
    return True
