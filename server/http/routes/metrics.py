"""The Prometheus endpoint `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from demi.server.telemetry.metrics import CONTENT_TYPE
from demi.server.telemetry.overview import Overview


def metrics_routes(overview: Overview) -> APIRouter:
    """Return the route that exposes metrics of all models and of the process."""
    router = APIRouter(tags=["statistics"])

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Return all metrics in Prometheus' text format."""
        return PlainTextResponse(await overview.metrics(), media_type=CONTENT_TYPE)

    return router
