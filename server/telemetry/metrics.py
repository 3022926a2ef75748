"""Prometheus metrics, built from the statistics at each scrape, so that requests do not pay for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.scheduling.statistics import SECONDS, Histogram, Statistics
from demi.server.telemetry.accuracy_metrics import accuracy_metrics
from demi.server.telemetry.gpu_metrics import GpuCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Read = Callable[[Model], float]
Labels = dict[str, str]

COUNTERS: tuple[tuple[str, str, Read], ...] = (
    ("nv_inference_request_success", "Requests answered", lambda model: model.statistics.success.count),
    ("nv_inference_request_failure", "Requests that failed", lambda model: model.statistics.fail.count),
    ("nv_inference_count", "Rows inferred", lambda model: model.statistics.inference_count),
    ("nv_inference_exec_count", "Runs of the model", lambda model: model.statistics.execution_count),
    (
        "nv_inference_request_duration_us",
        "Time of all requests, in microseconds",
        lambda model: model.statistics.success.ns // 1000,
    ),
    (
        "nv_inference_queue_duration_us",
        "Time requests waited, in microseconds",
        lambda model: model.statistics.queue.ns // 1000,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Time to batch inputs, in microseconds",
        lambda model: model.statistics.compute.compute_input.ns // 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Time in the model, in microseconds",
        lambda model: model.statistics.compute.compute_infer.ns // 1000,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Time to split outputs, in microseconds",
        lambda model: model.statistics.compute.compute_output.ns // 1000,
    ),
)
"""Triton's names, for which dashboards exist."""

GAUGES: tuple[tuple[str, str, Read], ...] = (
    ("nv_inference_pending_request_count", "Requests that wait", lambda model: model.queue_length),
    ("demi_queue_length", "Requests that wait", lambda model: model.queue_length),
    ("demi_requests_in_flight", "Requests admitted but not answered yet", lambda model: model.in_flight),
    ("demi_model_ready", "1 if the model is ready, else 0", lambda model: float(not model.reason)),
)

HISTOGRAMS: tuple[tuple[str, str, Callable[[Statistics], Histogram]], ...] = (
    ("demi_batch_rows", "Rows per batch", lambda statistics: statistics.batch_rows),
    (
        "demi_request_seconds",
        "Time from the arrival of an answered request to its answer, in seconds",
        lambda statistics: statistics.request_seconds.coarse(SECONDS),
    ),
    (
        "demi_queue_seconds",
        "Time a request waited in the queue, in seconds",
        lambda statistics: statistics.queue_seconds,
    ),
    (
        "demi_compute_seconds",
        "Time a request took to compute, in seconds",
        lambda statistics: statistics.compute_seconds,
    ),
)


def create_registry(repository: Repository) -> CollectorRegistry:
    """Return a registry for the models and the process. Use it on the event loop's thread only."""
    registry = CollectorRegistry()
    registry.register(ModelCollector(repository))
    registry.register(GpuCollector(repository))
    ProcessCollector(registry=registry)
    return registry


def write_metrics(registry: CollectorRegistry) -> bytes:
    """Return all metrics in Prometheus' text format."""
    # The library appends `_total` to counter names in comments, even if the samples have other names.
    return re.sub(rb"(?m)^(# (?:HELP|TYPE) nv_\w+)_total ", rb"\1 ", generate_latest(registry))


class ModelCollector(Collector):
    """Metrics of all model versions, labelled with name, version and precision."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Metric]:
        """Return the current values of all metrics."""
        models = [(model, _labels(model)) for model in self._repository]
        for kind, table in (("counter", COUNTERS), ("gauge", GAUGES)):
            for name, text, read in table:
                metric = Metric(name, text, kind)
                for model, labels in models:
                    metric.add_sample(name, labels, read(model))
                yield metric
        share = Metric("demi_traffic_percent", "Share of requests without a version that this version answers", "gauge")
        for model, labels in models:
            share.add_sample("demi_traffic_percent", labels, self._repository.share(model))
        yield share
        busy = Metric("demi_device_busy_seconds", "Time in which a device ran the model, in seconds", "counter")
        for model, labels in models:
            for device, spent_ns in sorted(model.statistics.device_busy_ns.items()):
                busy.add_sample("demi_device_busy_seconds_total", {**labels, "device": device}, spent_ns / 1e9)
        yield busy
        yield from accuracy_metrics(
            [(model.monitor, model.shadow, labels) for model, labels in models if model.precision]
        )
        for name, text, find in HISTOGRAMS:
            family = HistogramMetricFamily(name, text, labels=("model", "version", "precision"))
            for model, labels in models:
                histogram = find(model.statistics)
                family.add_metric(list(labels.values()), histogram.buckets(), histogram.total)
            yield family


def _labels(model: Model) -> Labels:
    return {"model": model.name, "version": model.version, "precision": model.precision}
