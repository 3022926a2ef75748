"""Is the process alive, and are its models ready?"""

from __future__ import annotations

from fastapi import APIRouter, Request

from demi.server.errors import UnauthorizedError, UnavailableError
from demi.server.keys import Keys
from demi.server.models.repository import Repository
from demi.server.protocol.schemas import ErrorBody, ServerLive, ServerReady


def health_routes(repository: Repository, keys: Keys | None = None) -> APIRouter:
    """`/v2/health/live` and `/v2/health/ready`, with short names for container checks.

    Whoever has none of the `keys` learns whether the server is ready, and not which model is to blame.
    """
    router = APIRouter(tags=["health"])

    @router.get("/v2/health/live")
    @router.get("/health/live", include_in_schema=False)
    async def live() -> ServerLive:
        """The process answers."""
        return ServerLive(live=True)

    @router.get("/v2/health/ready", responses={503: {"model": ErrorBody}})
    @router.get("/health/ready", include_in_schema=False, responses={503: {"model": ErrorBody}})
    async def ready(request: Request) -> ServerReady:
        """Requests are welcome: the models are loaded and the server is not shutting down."""
        if reason := repository.reason:
            knows = _is_known(keys, request)
            raise UnavailableError(f"the server is not ready: {reason}" if knows else "the server is not ready")
        return ServerReady(ready=True)

    return router


def _is_known(keys: Keys | None, request: Request) -> bool:
    try:
        if keys:
            keys.authorize(request.scope["headers"])
    except UnauthorizedError:
        return False
    return True
