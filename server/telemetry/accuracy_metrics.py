"""Accuracy of models as Prometheus metrics, built from counters at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import HistogramMetricFamily, Metric

from demi.server.accuracy.monitor import AccuracyMonitor, OutputCounts
from demi.server.accuracy.shadow import Shadow
from demi.server.scheduling.statistics import Histogram

Labels = dict[str, str]
Row = tuple[AccuracyMonitor, Shadow | None, Labels]
Samples = list[tuple[Labels, float]]

COUNTERS: tuple[tuple[str, str, Callable[[AccuracyMonitor, Shadow | None], Samples]], ...] = (
    (
        "demi_guard_reruns",
        "Answers computed in FP32 because half was not finite",
        lambda monitor, _: [({}, monitor.guard.reruns)],
    ),
    (
        "demi_guard_unrepaired",
        "Answers that were not finite and that FP32 could not repair",
        lambda monitor, _: [({}, monitor.guard.unrepaired)],
    ),
    (
        "demi_shadow_samples",
        "Sampled requests compared with the other precision",
        lambda _, shadow: [({}, shadow.samples if shadow else 0)],
    ),
    (
        "demi_shadow_dropped",
        "Sampled requests that were not compared",
        lambda _, shadow: [({"reason": reason}, count) for reason, count in (shadow.dropped if shadow else {}).items()],
    ),
    (
        "demi_range_drift",
        "Requests with an input outside its calibrated range",
        lambda monitor, _: [({"input": name}, count) for name, count in monitor.outside.items()],
    ),
    (
        "demi_precision_requests",
        "Requests by precision served",
        lambda monitor, _: [({"served": precision}, count) for precision, count in monitor.served.items()],
    ),
    (
        "demi_drift_changes",
        "Changes between within and over the accuracy budget",
        lambda monitor, _: [({"to": to}, count) for to, count in monitor.changed.items()],
    ),
    ("demi_shadow_top1", "Compared answers with class scores", lambda w, _: _of_outputs(w, lambda c: c.top1)),
    (
        "demi_shadow_top1_agree",
        "Compared answers that agree on the largest score",
        lambda monitor, _: _of_outputs(monitor, lambda counts: counts.top1_agree),
    ),
    (
        "demi_shadow_non_finite",
        "Elements that were not finite in half precision only",
        lambda monitor, _: _of_outputs(monitor, lambda counts: counts.non_finite),
    ),
)

HISTOGRAMS: tuple[tuple[str, str, Callable[[OutputCounts], Histogram]], ...] = (
    ("demi_shadow_relative_l2", "Relative L2 error of half against FP32", lambda counts: counts.relative_l2),
    ("demi_shadow_max_abs", "Largest absolute error of half against FP32", lambda counts: counts.max_abs),
    ("demi_shadow_cosine_distance", "1 minus the smallest cosine similarity", lambda counts: counts.cosine_distance),
    ("demi_shadow_sqnr_db", "Signal to quantization noise ratio, in decibels", lambda counts: counts.sqnr_db),
)

STATES = ("within", "over", "unknown")


def accuracy_metrics(rows: Sequence[Row]) -> Iterator[Metric]:
    """Return all accuracy metrics of these models, with their labels."""
    for name, text, read in COUNTERS:
        metric = Metric(name, text, "counter")
        for monitor, shadow, labels in rows:
            for more, value in read(monitor, shadow):
                metric.add_sample(f"{name}_total", {**labels, **more}, value)
        yield metric
    for name, text, find in HISTOGRAMS:
        family = HistogramMetricFamily(name, text, labels=("model", "version", "precision", "output"))
        for monitor, _, labels in rows:
            for output, counts in monitor.counts.items():
                histogram = find(counts)
                family.add_metric([*labels.values(), output], histogram.buckets(), histogram.total)
        yield family
    gauge = Metric("demi_accuracy_state", "1 for the current state of the accuracy budget", "gauge")
    for monitor, _, labels in rows:
        state = "over" if monitor.over else monitor.window.assess().state
        for each in STATES:
            gauge.add_sample("demi_accuracy_state", {**labels, "state": each}, float(each == state))
    yield gauge


def _of_outputs(monitor: AccuracyMonitor, read: Callable[[OutputCounts], float]) -> Samples:
    return [({"output": output}, read(counts)) for output, counts in monitor.counts.items()]
