"""The Prometheus endpoint `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from demi.server.models.repository import Repository
from demi.server.telemetry.metrics import CONTENT_TYPE, create_registry, write_metrics


def metrics_routes(repository: Repository) -> APIRouter:
    """Return the route that exposes metrics of all models and of the process."""
    router = APIRouter(tags=["statistics"])
    registry = create_registry(repository)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Return all metrics in Prometheus' text format."""
        return PlainTextResponse(write_metrics(registry), media_type=CONTENT_TYPE)

    return router
