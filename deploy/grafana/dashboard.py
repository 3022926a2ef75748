"""Grafana dashboard, generated from a table of panels.

    python deploy/grafana/dashboard.py > deploy/grafana/dashboards/demi.json

Each entry of PANELS is one panel: title, curves, unit, and a one-sentence description. Grafana reads the generated JSON
only; a test checks that it matches this table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
WINDOW = "$__rate_interval"
MODELS = 'model=~"$model",version=~"$version"'
BY_MODEL = "model, version"
WIDTH, HEIGHT = 8, 8
"""Grid units of a panel: a third of a row, which is 24 wide."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One query and its legend."""

    query: str
    legend: str = "{{model}} v{{version}}"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel."""

    title: str
    curves: tuple[Curve, ...]
    unit: str
    text: str
    kind: str = "timeseries"


def rate(metric: str, by: str = BY_MODEL, where: str = "") -> str:
    """Return a query for the rate of a counter, per second."""
    return f"sum by ({by}) (rate({metric}{{{MODELS}{where}}}[{WINDOW}]))"


def quantile(share: float, metric: str, by: str = BY_MODEL) -> str:
    """Return a query for a quantile of a histogram; `share` is from 0 to 1."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'le, {by}')})"


def quantiles(metric: str, by: str = BY_MODEL, legend: str = "{{model}} v{{version}}") -> tuple[Curve, ...]:
    """Return curves of the median, the 95th and the 99th percentile."""
    return tuple(Curve(quantile(share, metric, by), f"p{share * 100:.0f} {legend}") for share in (0.5, 0.95, 0.99))


def ratio(above: str, below: str) -> str:
    """Return a query for the ratio of two rates, without a value while the lower one is 0."""
    return f"{above} / ({below} > 0)"


def gauge(metric: str, where: str = "") -> str:
    """Return a query for a gauge."""
    return f"{metric}{{{MODELS}{where}}}"


OUTPUT = f"{BY_MODEL}, output"
OUTPUT_LEGEND = "{{model}} v{{version}} {{output}}"

PANELS: dict[str, tuple[Panel, ...]] = {
    "Traffic": (
        Panel(
            "Requests",
            (
                Curve(rate("nv_inference_request_success"), "answered {{model}} v{{version}}"),
                Curve(rate("nv_inference_request_failure"), "failed {{model}} v{{version}}"),
            ),
            "reqps",
            "Requests answered and failed, per second.",
        ),
        Panel("Rows", (Curve(rate("nv_inference_count")),), "ops", "Throughput: rows inferred per second."),
        Panel(
            "Waiting and in flight",
            (
                Curve(gauge("demi_queue_length"), "waiting {{model}} v{{version}}"),
                Curve(gauge("demi_requests_in_flight"), "in flight {{model}} v{{version}}"),
            ),
            "short",
            "Requests admitted and not answered yet, and those of them that wait in the queue.",
        ),
    ),
    "Latency": (
        Panel(
            "Whole request, mean",
            (
                Curve(
                    ratio(rate("nv_inference_request_duration_us"), rate("nv_inference_request_success")),
                ),
            ),
            "µs",
            "Time from the parsed request to its answer.",
        ),
        Panel("Waiting", quantiles("demi_queue_seconds"), "s", "Time that requests waited for the device."),
        Panel("Computing", quantiles("demi_compute_seconds"), "s", "Duration of the runs."),
    ),
    "Batches": (
        Panel(
            "Rows in a batch, mean",
            (Curve(ratio(rate("demi_batch_rows_sum"), rate("demi_batch_rows_count"))),),
            "short",
            "Rows per batch. Batches form while the device is busy, so this grows with the load.",
        ),
        Panel(
            "Rows in a batch, spread",
            (Curve(rate("demi_batch_rows_bucket", "le"), "{{le}}"),),
            "short",
            "Distribution of rows per batch.",
            kind="heatmap",
        ),
        Panel("Runs", (Curve(rate("nv_inference_exec_count")),), "ops", "Runs of the model per second."),
    ),
    "Accuracy on live requests": (
        Panel(
            "State",
            (Curve(gauge("demi_accuracy_state"), "{{state}} {{model}} v{{version}}"),),
            "short",
            "1 for the current state: within the bundle's accuracy budget, over it, or unknown (too few samples).",
        ),
        Panel(
            "Relative L2",
            quantiles("demi_shadow_relative_l2", OUTPUT, OUTPUT_LEGEND),
            "sci",
            "Half against FP32 on sampled requests: norm of the difference divided by the norm of the answer.",
        ),
        Panel(
            "Largest difference",
            quantiles("demi_shadow_max_abs", OUTPUT, OUTPUT_LEGEND),
            "sci",
            "Largest absolute difference of an element.",
        ),
        Panel(
            "Cosine distance",
            quantiles("demi_shadow_cosine_distance", OUTPUT, OUTPUT_LEGEND),
            "sci",
            "1 minus the cosine similarity of the half and the FP32 answer.",
        ),
        Panel(
            "Signal to quantization noise",
            (Curve(quantile(0.05, "demi_shadow_sqnr_db", OUTPUT), f"p5 {OUTPUT_LEGEND}"),),
            "dB",
            "5th percentile: 19 in 20 answers are better. Higher is better.",
        ),
        Panel(
            "Top-1 agreement",
            (
                Curve(
                    ratio(rate("demi_shadow_top1_agree_total", OUTPUT), rate("demi_shadow_top1_total", OUTPUT)),
                    OUTPUT_LEGEND,
                ),
            ),
            "percentunit",
            "Share of rows whose largest element is the same in half and in FP32.",
        ),
        Panel(
            "Non-finite",
            (Curve(rate("demi_shadow_non_finite_total", OUTPUT), OUTPUT_LEGEND),),
            "ops",
            "Elements that are NaN or infinite in half and not in FP32.",
        ),
        Panel(
            "Samples",
            (
                Curve(rate("demi_shadow_samples_total"), "compared {{model}} v{{version}}"),
                Curve(rate("demi_shadow_dropped_total"), "dropped {{model}} v{{version}}"),
            ),
            "ops",
            "Requests that were also run in FP32, and sampled requests that were dropped.",
        ),
    ),
    "Guard and drift": (
        Panel(
            "Reruns in FP32",
            (
                Curve(rate("demi_guard_reruns_total"), "run again {{model}} v{{version}}"),
                Curve(rate("demi_guard_unrepaired_total"), "not repaired {{model}} v{{version}}"),
            ),
            "ops",
            "Answers that overflowed in half and were computed again in FP32.",
        ),
        Panel(
            "Served precision",
            (Curve(rate("demi_precision_requests_total", f"{BY_MODEL}, served"), "{{served}} {{model}} v{{version}}"),),
            "reqps",
            "Answers by precision.",
        ),
        Panel(
            "Drift",
            (
                Curve(rate("demi_range_drift_total"), "inputs outside {{model}} v{{version}}"),
                Curve(rate("demi_drift_changes_total", f"{BY_MODEL}, to"), "to {{to}} {{model}} v{{version}}"),
            ),
            "ops",
            "Requests with inputs outside the calibrated ranges, and changes of the accuracy state.",
        ),
    ),
    "Process": (
        Panel("Ready", (Curve(gauge("demi_model_ready")),), "short", "1 if the model is ready."),
        Panel(
            "CPU",
            (Curve(f"rate(process_cpu_seconds_total{{job='demi'}}[{WINDOW}])", "{{instance}}"),),
            "short",
            "CPU cores used by the server's process.",
        ),
        Panel(
            "Memory",
            (Curve("process_resident_memory_bytes{job='demi'}", "{{instance}}"),),
            "bytes",
            "Resident memory of the server's process.",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON model."""
    return {
        "uid": "demi",
        "title": "Demi",
        "description": "Half-precision inference: traffic, latency, batches, and how close the answers are to FP32.",
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "editable": False,
        "templating": {"list": [_variable("model", ""), _variable("version", 'model=~"$model"')]},
        "panels": _panels(),
    }


def _variable(label: str, where: str) -> dict[str, Any]:
    query = f"label_values(demi_model_ready{{{where}}}, {label})"
    return {
        "name": label,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": label},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> list[dict[str, Any]]:
    """Return a heading for each row, followed by its panels, three side by side."""
    placed: list[dict[str, Any]] = []
    y = 0
    for heading, panels in PANELS.items():
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        placed.append({"id": len(placed) + 1, "type": "row", "title": heading, "gridPos": place, "panels": []})
        y += 1
        for index, panel in enumerate(panels):
            place = {"x": index % 3 * WIDTH, "y": y + index // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT}
            placed.append({"id": len(placed) + 1, **_panel(panel), "gridPos": place})
        y += -(-len(panels) // 3) * HEIGHT
    return placed


def _panel(panel: Panel) -> dict[str, Any]:
    is_heatmap = panel.kind == "heatmap"
    targets = [
        {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": curve.query, "legendFormat": curve.legend}
        | ({"format": "heatmap"} if is_heatmap else {})
        for index, curve in enumerate(panel.curves)
    ]
    options = {"calculate": False} if is_heatmap else {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list"}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0} if not is_heatmap else {}, "overrides": []},
        "options": options,
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2, ensure_ascii=False))
