"""The documentation of the server is complete and up to date."""

from __future__ import annotations

import re

from demi.server.errors import STATUS
from demi.server.grpc.messages import service
from demi.server.settings import table
from demi.server.settings_docs import render
from demi.server.telemetry.metrics import COUNTERS, GAUGES, HISTOGRAMS
from tests.paths import ROOT

DOCS = ROOT / "docs"
HTTP = (DOCS / "http.md").read_text()


def test_settings_page_is_up_to_date():
    """The page equals the output of `python -m demi.server.settings_docs`."""
    assert render() == (DOCS / "settings.md").read_text()


def test_every_metric_is_documented():
    """The page mentions each metric."""
    assert [] == [name for name, *_ in (*COUNTERS, *GAUGES, *HISTOGRAMS) if f"`{name}`" not in HTTP]


def test_every_status_is_documented():
    """The page has a row for each status."""
    assert {status.http for status in STATUS.values()} <= set(map(int, re.findall(r"\b[45]\d\d\b", HTTP)))


def test_flags_on_the_page_exist():
    """Each flag on the page exists."""
    flags = set(re.findall(r"`(--[a-z-]+)", HTTP)) - {"--no-metrics"}

    assert flags <= {row.flag for row in table().values()}


def test_every_path_is_documented(client):
    """The page and the OpenAPI document list the same paths."""
    paths = client.get("/openapi.json").json()["paths"]
    names = {"{model}": "NAME", "{version}": "V", "{region}": "REGION"}
    known = {re.sub(r"\{\w+\}", lambda found: names[found[0]], path) for path in paths}
    written = HTTP.replace("`.../unload`", "`/v2/repository/models/NAME/unload`")
    page = re.sub(r"\[(/[^\]]+)\]", "", written) + re.sub(r"\[(/[^\]]+)\]", r"\1", written)

    assert [] == sorted(path for path in known if path not in page)


def test_every_grpc_method_and_code_is_documented():
    """The page has a row for each gRPC method and code."""
    page = (DOCS / "grpc.md").read_text().replace("`...", "`SystemSharedMemory")
    page += page.replace("`SystemSharedMemory", "`CudaSharedMemory")
    names = [method.name for method in service("inference.GRPCInferenceService").methods]

    assert [] == [name for name in (*names, *(status.grpc for status in STATUS.values())) if f"`{name}`" not in page]
