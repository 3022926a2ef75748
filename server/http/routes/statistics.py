"""What every model version has done, as perf_analyzer reads it."""

from __future__ import annotations

from fastapi import APIRouter

from demi.server.http.routes.models import UNKNOWN
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.protocol.schemas import (
    BatchStats,
    DurationStats,
    InferenceStats,
    ModelStats,
    StatsAnswer,
)
from demi.server.scheduling.statistics import Duration

_NEVER = DurationStats(0, 0)


def statistics_routes(repository: Repository) -> APIRouter:
    """Statistics of all models, of all versions of one, and of one version."""
    router = APIRouter(tags=["statistics"])

    @router.get("/v2/models/stats")
    async def all_statistics() -> StatsAnswer:
        """Counts and times of every model version."""
        return statistics_of(repository)

    @router.get("/v2/models/{model}/stats", responses=UNKNOWN)
    @router.get("/v2/models/{model}/versions/{version}/stats", responses=UNKNOWN)
    async def model_statistics(model: str, version: str | None = None) -> StatsAnswer:
        """Counts and times of one version, or of all versions of a model."""
        return statistics_of(repository, model, version)

    return router


def statistics_of(repository: Repository, name: str | None = None, version: str | None = None) -> StatsAnswer:
    """The statistics of all models, of all versions of one, or of one version; NotFoundError where there is none."""
    if name is None:
        return StatsAnswer([describe_statistics(model) for model in repository])
    found = repository.find(name, version)
    versions = [found] if version else [repository.find(name, known) for known in repository.versions(name)]
    return StatsAnswer([describe_statistics(model) for model in versions])


def describe_statistics(model: Model) -> ModelStats:
    """The statistics of one model version; zeros where it has done nothing yet."""
    stats = model.statistics
    return ModelStats(
        name=model.name,
        version=model.version,
        last_inference=stats.last_inference_ms,
        inference_count=stats.inference_count,
        execution_count=stats.execution_count,
        inference_stats=InferenceStats(
            success=_duration(stats.success),
            fail=_duration(stats.fail),
            queue=_duration(stats.queue),
            compute_input=_duration(stats.compute.compute_input),
            compute_infer=_duration(stats.compute.compute_infer),
            compute_output=_duration(stats.compute.compute_output),
            cache_hit=_NEVER,
            cache_miss=_NEVER,
        ),
        batch_stats=[
            BatchStats(
                rows, _duration(times.compute_input), _duration(times.compute_infer), _duration(times.compute_output)
            )
            for rows, times in sorted(stats.batches.items())
        ],
    )


def _duration(duration: Duration) -> DurationStats:
    return DurationStats(duration.count, duration.ns)
