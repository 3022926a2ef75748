"""Statistics of several servers as those of one: counts and durations add up, batches of one size belong together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import reduce

from demi.server.protocol.schemas import BatchStats, DurationStats, InferenceStats, ModelStats, StatsAnswer


def join_statistics(answers: Iterable[StatsAnswer]) -> StatsAnswer:
    """Return the statistics of all model versions that any server knows, in the order in which they first appear."""
    by_model: dict[tuple[str, str], list[ModelStats]] = {}
    for answer in answers:
        for stats in answer.model_stats:
            by_model.setdefault((stats.name, stats.version), []).append(stats)
    return StatsAnswer([_join_model(found) for found in by_model.values()])


def _join_model(found: Sequence[ModelStats]) -> ModelStats:
    return ModelStats(
        name=found[0].name,
        version=found[0].version,
        last_inference=max(stats.last_inference for stats in found),
        inference_count=sum(stats.inference_count for stats in found),
        execution_count=sum(stats.execution_count for stats in found),
        inference_stats=_join_stages([stats.inference_stats for stats in found]),
        batch_stats=_join_batches([batch for stats in found for batch in stats.batch_stats]),
    )


def _join_stages(found: Sequence[InferenceStats]) -> InferenceStats:
    stages = [field.name for field in fields(InferenceStats)]
    return InferenceStats(**{stage: _sum([getattr(stats, stage) for stats in found]) for stage in stages})


def _join_batches(found: Sequence[BatchStats]) -> list[BatchStats]:
    sizes = sorted({batch.batch_size for batch in found})
    return [_join_batch(size, [batch for batch in found if batch.batch_size == size]) for size in sizes]


def _join_batch(size: int, found: Sequence[BatchStats]) -> BatchStats:
    return BatchStats(
        size,
        _sum([batch.compute_input for batch in found]),
        _sum([batch.compute_infer for batch in found]),
        _sum([batch.compute_output for batch in found]),
    )


def _sum(durations: Sequence[DurationStats]) -> DurationStats:
    return reduce(lambda one, other: DurationStats(one.count + other.count, one.ns + other.ns), durations)
