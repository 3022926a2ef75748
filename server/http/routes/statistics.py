"""Statistics of models, in the form that perf_analyzer reads."""

from __future__ import annotations

from fastapi import APIRouter

from demi.server.http.routes.responses import UNKNOWN
from demi.server.protocol.schemas import StatsAnswer
from demi.server.telemetry.overview import Overview


def statistics_routes(overview: Overview) -> APIRouter:
    """Return the routes for statistics of all models, of one model, and of one version."""
    router = APIRouter(tags=["statistics"])

    @router.get("/v2/models/stats")
    async def all_statistics() -> StatsAnswer:
        """Return counts and times of all model versions."""
        return await overview.statistics()

    @router.get("/v2/models/{model}/stats", responses=UNKNOWN)
    @router.get("/v2/models/{model}/versions/{version}/stats", responses=UNKNOWN)
    async def model_statistics(model: str, version: str | None = None) -> StatsAnswer:
        """Return counts and times of one version, or of all versions of a model."""
        return await overview.statistics(model, version)

    return router
