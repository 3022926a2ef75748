"""The dashboard and the alerts: real PromQL, about metrics that the server really has."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import time
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.dockerfile import ROOT
from tests.deploy.promql import labels, metrics
from tests.server.bundles import GOLDEN_X, MIXED, write_bundle
from tests.server.processes import serving

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboards/demi.json").read_text())
ALERTS = [
    rule for group in yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"] for rule in group["rules"]
]
PROMETHEUS_OWN = {"up"}
"""Metrics that Prometheus itself writes about its targets."""


def panels() -> list[dict[str, Any]]:
    """The dashboard's pictures, without its headings."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Every PromQL expression of the dashboard and of the alerts."""
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return shown + [rule["expr"] for rule in ALERTS]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> dict[str, set[str]]:
    """The metrics of a real server that has answered a request, each with its labels."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder / "mixed/1", MIXED, golden=GOLDEN_X, reference=MIXED, ranges={"x": (-1.0, 1.0)})
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    with serving(folder, "--shadow", "1") as process:
        httpx.post(f"{process.url}/v2/models/mixed/infer", json=body).raise_for_status()
        for _ in range(200):  # until the request has been compared, once the server has nothing else to do
            text = httpx.get(f"{process.url}/metrics").raise_for_status().text
            if "demi_shadow_relative_l2_bucket" in text:
                break
            time.sleep(0.05)
    found: dict[str, set[str]] = {}
    for name, pairs in re.findall(r"^([a-z_]\w*)(?:\{(.*)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', pairs))
    return found


def unknown_metrics(expression: str, known: set[str]) -> set[str]:
    """Return metrics that an expression reads and the server does not have."""
    return metrics(expression) - known - PROMETHEUS_OWN


def unknown_labels(expression: str, known: dict[str, set[str]]) -> set[str]:
    """Labels that an expression asks of a metric that does not have them; Prometheus itself adds job and instance."""
    return {
        f"{metric}: {label}"
        for metric, asked in labels(expression).items()
        if metric in known
        for label in asked - known[metric] - {"job", "instance"}
    }


def test_the_dashboard_matches_its_table():
    """deploy/grafana/dashboard.py writes what is in the JSON file."""
    spec = importlib.util.spec_from_file_location("dashboard", ROOT / "deploy/grafana/dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)

    assert module.dashboard() == DASHBOARD, (
        "run: python deploy/grafana/dashboard.py > deploy/grafana/dashboards/demi.json"
    )


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_exists(served, expression):
    """The expression is PromQL, and the server has the metrics it reads, with the labels it asks for."""
    assert metrics(expression)
    assert set() == unknown_metrics(expression, set(served))
    assert set() == unknown_labels(expression, served)


def test_the_dashboard_shows_what_matters():
    """Latency, throughput, batches, accuracy against FP32, and the guard each have their row."""
    titles = " ".join(panel["title"] for panel in DASHBOARD["panels"])

    for word in ("Traffic", "Latency", "Batches", "Accuracy", "Guard"):
        assert word in titles


def test_panels_ask_the_provisioned_source():
    """The source of data has the name that provisioning gives it, and panels lie side by side."""
    path = ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(path.read_text())["datasources"]

    assert {source["uid"]} == {panel["datasource"]["uid"] for panel in panels()}
    assert [] == overlapping(DASHBOARD["panels"])
    assert [(1, 2)] == overlapping(
        [{"id": 1, "gridPos": {"x": 0, "y": 0, "w": 9, "h": 2}}, {"id": 2, "gridPos": {"x": 8, "y": 1, "w": 8, "h": 2}}]
    )


def overlapping(placed: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Pairs of panels that lie on each other."""
    cells: dict[tuple[int, int], int] = {}
    found = []
    for panel in placed:
        place = panel["gridPos"]
        for cell in (
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ):
            if cell in cells:
                found.append((cells[cell], panel["id"]))
            cells[cell] = panel["id"]
    return sorted(set(found))


def test_every_alert_has_a_model_and_a_severity():
    """Each has a severity and a sentence that names the model or the server."""
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
        assert "$labels." in rule["annotations"]["summary"], rule["alert"]


def test_a_wrong_expression_is_reported():
    """Invalid PromQL, an unknown metric, and a label that its metric does not have."""
    known = {"demi_queue_length": {"model"}}

    with pytest.raises(ValueError):
        metrics("sum by (model (rate(x[5m]))")
    assert {"demi_queue_lenght"} == unknown_metrics("max(demi_queue_lenght) > 1", set(known))
    assert {"demi_queue_length: modle"} == unknown_labels("sum by (modle) (demi_queue_length)", known)
    assert {"demi_queue_length: colour"} == unknown_labels('demi_queue_length{colour="red"} / up', known)
