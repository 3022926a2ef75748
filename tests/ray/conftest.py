"""One Ray cluster for all tests: two replicas at `/`, and one that needs an API key at `/keyed`."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from bench.scale.isolated import is_isolated
from tests.server.bundles import GOLDEN_X, LOGARITHM, MIXED, SCALE, SLOW, write_bundle

KEY = "a-key-of-the-test-suite"
URL = "http://127.0.0.1:8000"

CLUMSY = """clumsy (float[batch, 3] x) => (float[batch, 3] y)
<float[1] more = {1.1}>
{ y = Mul(x, more) }"""
"""Ten percent more than its reference, whatever it is asked."""

SAME = """clumsy (float[batch, 3] x) => (float[batch, 3] y)
{ y = Identity(x) }"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them where Ray cannot be had."""
    reason = _reason_to_skip()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def _reason_to_skip() -> str:
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed: `make ray` runs these tests in an environment of their own"
    if not is_isolated():
        return "Ray listens on all interfaces: `make ray` runs these tests apart from the network"
    return ""


@dataclass
class Collector:
    """An OpenTelemetry collector that keeps the bodies it receives."""

    url: str = ""
    received: list[bytes] = field(default_factory=list)


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Listen for traces over HTTP."""
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the models: `mixed` can be sampled, `clumsy` is over its budget, `slow` takes as long as it is asked to."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder / "scale" / "1", SCALE, golden=GOLDEN_X)
    write_bundle(folder / "mixed" / "1", MIXED, golden=GOLDEN_X, reference=SCALE)
    write_bundle(folder / "logarithm" / "1", LOGARITHM, golden=GOLDEN_X)
    write_bundle(folder / "slow" / "1", SLOW)
    write_bundle(folder / "clumsy" / "1", CLUMSY, golden=GOLDEN_X, reference=SAME)
    return folder


@pytest.fixture(scope="session")
def cluster(models: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start Ray and both applications."""
    from bench.scale.cluster import deploy, ray_cluster

    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY + "\n")
    with ray_cluster():
        options = {"allow_model_control": True, "precision": "half", "runtime": "onnxruntime", "on_drift": "fp32"}
        deploy(models, replicas=2, trial=False, **options)
        deploy(
            models,
            name="keyed",
            prefix="/keyed",
            trial=False,
            api_key_file=str(keys),
            otel_endpoint=collector.url,
        )
        yield


@pytest.fixture
def client(cluster: None) -> Iterator[httpx.Client]:
    """Open a client that takes a new connection for each request, so that HAProxy chooses among all replicas."""
    with httpx.Client(base_url=URL, timeout=60, headers={"connection": "close"}) as made:
        yield made
