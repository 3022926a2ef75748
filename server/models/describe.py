"""Metadata, configuration, statistics and accuracy of models, as reported over HTTP and gRPC."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from demi.accuracy.budget import Budget
from demi.server.accuracy.summary import Summary
from demi.server.models.computed import vouches_for
from demi.server.models.model import Model, State
from demi.server.models.repository import Repository
from demi.server.protocol.schemas import (
    AccuracyAnswer,
    BatchStats,
    DurationStats,
    GuardCounts,
    IndexEntry,
    InferenceStats,
    ModelConfig,
    ModelMetadata,
    ModelStats,
    RangeCounts,
    ServerMetadata,
    ShadowCounts,
    StatsAnswer,
    TensorConfig,
    TensorMetadata,
    TransactionPolicy,
    WorstRequest,
)
from demi.server.scheduling.statistics import Duration
from demi.server.setting_values import show_devices
from demi.server.settings import ServeSettings
from demi.tensors import DType, TensorSpec
from demi.version import __version__

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "parameters",
    "statistics",
    "trace",
    "logging",
]


PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "openvino": "openvino"}
"""Triton's platform names by runtime. The runtime is also the name of the backend."""


GENERATED = (TensorSpec("text_output", DType.BYTES, ("rows",)),)
"""Output of a model that generates, as Triton's backends for language models call it."""


def describe_server(settings: ServeSettings) -> ServerMetadata:
    """Return the metadata of a server with these settings."""
    control = ["model_repository"] if settings.allow_model_control else []
    memory = ["system_shared_memory"] if settings.allow_shared_memory else []
    return ServerMetadata("demi", __version__, EXTENSIONS + control + memory)


def describe_model(model: Model, versions: list[str], settings: ServeSettings) -> ModelMetadata:
    """Return the metadata of a loaded model. Raise UnavailableError before it is loaded."""
    signature = model.signature
    stalled = {"stalled": model.stalled} if model.stalled else {}
    note = {"note": model.note} if model.note else {}
    return ModelMetadata(
        name=model.name,
        versions=versions,
        platform=PLATFORMS[model.loaded.runtime],
        inputs=[_tensor_metadata(spec) for spec in (*signature.inputs, *_rows(model))],
        outputs=[_tensor_metadata(spec) for spec in (*signature.outputs, *_answers(model))],
        parameters={
            "precision": model.loaded.precision,
            "runtime": model.loaded.runtime,
            "device": show_devices(settings.devices),
            "batching": signature.batching,
            "accuracy": "degraded" if model.monitor.degraded else model.monitor.state_text,
            **_processing(model),
            **note,
            **stalled,
        },
    )


def _processing(model: Model) -> dict[str, str]:
    """Return which inputs may be sent instead of the others, and for which task; empty for tensors alone."""
    made_of = model.loaded.processor or model.loaded.generator
    if made_of is None:
        return {}
    return {"raw_inputs": ",".join(spec.name for spec in _rows(model)), "task": made_of.description.task}


def _rows(model: Model) -> tuple[TensorSpec, ...]:
    """Return the inputs for texts, images or sounds; over gRPC, those of a model that generates."""
    generator = model.loaded.generator
    if generator is None:
        return model.signature.raw
    return tuple(TensorSpec(f"{name}_input", DType.BYTES, ("rows",)) for name in generator.inputs)


def _answers(model: Model) -> tuple[TensorSpec, ...]:
    return model.signature.answers if model.loaded.generator is None else GENERATED


def configure_model(model: Model) -> ModelConfig:
    """Return the configuration of a loaded model. Raise UnavailableError before it is loaded."""
    signature = model.signature
    return ModelConfig(
        name=model.name,
        platform=PLATFORMS[model.loaded.runtime],
        backend=model.loaded.runtime,
        max_batch_size=signature.max_batch_size,
        input=[TensorConfig(spec.name, _config_type(spec.dtype), signature.dims(spec)) for spec in signature.inputs],
        output=[TensorConfig(spec.name, _config_type(spec.dtype), signature.dims(spec)) for spec in signature.outputs],
        model_transaction_policy=TransactionPolicy(decoupled=model.loaded.generator is not None),
    )


def index_entry(model: Model) -> IndexEntry:
    """Return a model version's row of the repository index."""
    return IndexEntry(model.name, model.version, model.state.value, model.reason)


def repository_index(repository: Repository, *, ready_only: bool) -> list[IndexEntry]:
    """Return the repository index: all model versions, or those that are ready."""
    return [index_entry(model) for model in repository if model.state is State.READY or not ready_only]


def _tensor_metadata(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(spec.name, spec.dtype.value, spec.wire_shape)


def _config_type(dtype: DType) -> str:
    return "TYPE_STRING" if dtype is DType.BYTES else f"TYPE_{dtype.value}"


_NEVER = DurationStats(0, 0)


def statistics_of(repository: Repository, name: str | None = None, version: str | None = None) -> StatsAnswer:
    """Return the statistics of all models, of all versions of one, or of one version.

    Raises NotFoundError for an unknown name or version.
    """
    if name is None:
        return StatsAnswer([describe_statistics(model) for model in repository])
    found = repository.find(name, version)
    versions = [found] if version else [repository.find(name, known) for known in repository.versions(name)]
    return StatsAnswer([describe_statistics(model) for model in versions])


def describe_statistics(model: Model) -> ModelStats:
    """Return the statistics of one model version."""
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


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """Accuracy of one model version on one server: its answer, and what it takes to join it with others'."""

    answer: AccuracyAnswer
    summaries: dict[str, Summary]
    """Of the window, by output."""
    budget: Budget
    over: bool
    """True from the detection of drift until recovery."""


def report_accuracy(model: Model) -> AccuracyReport:
    """Return the accuracy of one loaded model version. Raise UnavailableError before it is loaded."""
    monitor = model.monitor
    return AccuracyReport(describe_accuracy(model), monitor.window.summarize(), monitor.window.budget, monitor.over)


def describe_accuracy(model: Model) -> AccuracyAnswer:
    """Return the accuracy of one loaded model version. Raise UnavailableError before it is loaded."""
    monitor, shadow = model.monitor, model.shadow
    accuracy = monitor.window.assess()
    return AccuracyAnswer(
        name=model.name,
        version=model.version,
        precision=model.precision,
        state=monitor.state_text,
        degraded=monitor.degraded,
        serving="fp32" if monitor.moves_traffic else model.precision,
        on_drift=monitor.on_drift,
        samples=accuracy.samples,
        outputs=msgspec.to_builtins(accuracy.outputs),
        worst=[
            WorstRequest(each.request_id, each.fingerprint, each.when_ms, each.error) for each in monitor.window.worst()
        ],
        shadow=ShadowCounts(shadow.share, shadow.samples, shadow.dropped) if shadow else None,
        guard=GuardCounts(
            monitor.guard.reruns, monitor.guard.unrepaired, msgspec.to_builtins(list(monitor.guard.records))
        ),
        ranges=[
            RangeCounts(name, low, high, monitor.outside[name]) for name, (low, high) in sorted(monitor.ranges.items())
        ],
        changes=msgspec.to_builtins(list(monitor.changes)),
        not_compared=[*model.loaded.varying.drawn, *model.loaded.varying.unsteady],
        vouches_for=vouches_for(model.precision, model.loaded.session.device.kind, model.loaded.runtime),
    )
