"""Is the process alive, and are its models ready?"""

from __future__ import annotations

from fastapi import APIRouter

from server.errors import UnavailableError
from server.repository import Repository
from server.schemas import ErrorBody, ServerLive, ServerReady


def health_routes(repository: Repository) -> APIRouter:
    """`/v2/health/live` and `/v2/health/ready`, with short names for container checks."""
    router = APIRouter(tags=["health"])

    @router.get("/v2/health/live")
    @router.get("/health/live", include_in_schema=False)
    async def live() -> ServerLive:
        """The process answers."""
        return ServerLive(live=True)

    @router.get("/v2/health/ready", responses={503: {"model": ErrorBody}})
    @router.get("/health/ready", include_in_schema=False, responses={503: {"model": ErrorBody}})
    async def ready() -> ServerReady:
        """Requests are welcome: the models are loaded and the server is not shutting down."""
        if reason := repository.reason:
            raise UnavailableError(f"the server is not ready: {reason}")
        return ServerReady(ready=True)

    return router
