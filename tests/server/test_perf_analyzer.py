"""Triton's perf_analyzer against a real server, in all its modes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.bundles import SCALE, write_bundle, write_repository
from tests.server.perf_analyzer import PerfAnalyzer, find
from tests.server.processes import ServerProcess, serving

pytestmark = pytest.mark.slow

TEXT = """text (string[batch, 3] x) => (string[batch, 3] y)
{ y = Identity(x) }"""

SHARED = ("--shared-memory", "system", "--output-shared-memory-size", "1024")
MODES: dict[str, tuple[str, ...]] = {
    "HTTP binary": ("-m", "scale", "-i", "http"),
    "HTTP JSON": ("-m", "scale", "-i", "http", "--input-tensor-format", "json", "--output-tensor-format", "json"),
    "gRPC unary": ("-m", "scale", "-i", "grpc"),
    "gRPC streaming": ("-m", "scale", "-i", "grpc", "--streaming", "--async"),
    "batch 8": ("-m", "scale", "-i", "http", "-b", "8"),
    "batch 8 over gRPC": ("-m", "scale", "-i", "grpc", "-b", "8"),
    "FP16": ("-m", "half", "-i", "http"),
    "FP16 over gRPC": ("-m", "half", "-i", "grpc"),
    "BYTES": ("-m", "text", "-i", "http"),
    "BYTES over gRPC": ("-m", "text", "-i", "grpc"),
    "fixed rate": ("-m", "scale", "-i", "http", "--request-rate-range", "50"),
    "system shared memory": ("-m", "scale", "-i", "http", *SHARED),
    "system shared memory over gRPC": ("-m", "scale", "-i", "grpc", *SHARED),
    "metrics": ("-m", "scale", "-i", "http", "--collect-metrics", "--metrics-interval", "200"),
}

REPORT = re.compile(
    r"Inference count: (?P<rows>\d+)\s+Execution count: (?P<runs>\d+)\s+Successful request count: (?P<requests>\d+)\s+"
    r"Avg request latency: \d+ usec \(overhead \d+ usec \+ queue \d+ usec \+ compute input \d+ usec \+ "
    r"compute infer \d+ usec \+ compute output \d+ usec\)"
)
"""The statistics of the server, as perf_analyzer prints them where it could read them."""


@pytest.fixture(scope="module")
def perf_analyzer() -> PerfAnalyzer:
    """Return the load generator, or skip with the reason."""
    found = find()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Start a server with the test models and one with strings, and with shared memory allowed."""
    root = write_repository(tmp_path_factory.mktemp("models"))
    write_bundle(root / "text" / "1", TEXT)
    with serving(root, "--allow-shared-memory") as process:
        yield process


def arguments(server: ServerProcess, mode: tuple[str, ...]) -> list[str]:
    """Return the command line of one short measurement without a stability criterion."""
    http = urlsplit(server.url).netloc
    address = server.grpc if "grpc" in mode else http
    load = () if "--request-rate-range" in mode else ("--concurrency-range", "2")
    metrics = ("--metrics-url", f"{http}/metrics") if "--collect-metrics" in mode else ()
    return [*mode, "-u", address, *load, *metrics, "-p", "500", "-s", "999", "-r", "10"]


def fails(server: ServerProcess, model: str) -> int:
    """Return the number of failed requests of a model."""
    stats = httpx.get(f"{server.url}/v2/models/{model}/stats").json()["model_stats"]
    return sum(version["inference_stats"]["fail"]["count"] for version in stats)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_every_way_to_ask(perf_analyzer, server, mode):
    """Each mode succeeds without failed requests, and its report contains the server's statistics."""
    ended = perf_analyzer.run(*arguments(server, mode))
    report = REPORT.search(ended.stdout)

    assert 0 == ended.returncode, ended.stdout + ended.stderr
    assert report, ended.stdout
    assert int(report["requests"]) > 0
    assert int(report["rows"]) == int(report["requests"]) * (8 if "-b" in mode else 1)
    assert 0 == fails(server, mode[1])
    assert "rror" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("-m", "nope", "-i", "http"), "unknown model `nope`"),
        (("-m", "nope", "-i", "grpc"), "unknown model `nope`"),
        (("-m", "scale", "-i", "http", *SHARED), "--allow-shared-memory"),
        (("-m", "scale", "-i", "grpc", *SHARED), "--allow-shared-memory"),
    ],
)
def test_server_errors_are_reported(perf_analyzer, tmp_path, wrong, message):
    """A server error makes it exit with a code other than 0 and print the message."""
    with serving(write_bundle(tmp_path / "b", SCALE)) as plain:
        ended = perf_analyzer.run(*arguments(plain, wrong))

    assert 0 != ended.returncode
    assert message in ended.stdout + ended.stderr


def test_a_binary_that_is_not_there_is_a_reason_to_skip(monkeypatch, tmp_path):
    """The reason contains the command that downloads the binary."""
    monkeypatch.setenv("DEMI_PERF_ANALYZER", str(tmp_path / "none"))

    assert "python -m tests.server.perf_analyzer" in str(find())
