"""Traces: contents of spans, parent traces, and collectors."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from demi.errors import PackageError
from demi.server.http.app import create_app
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.protocol.answer import Answer
from demi.server.settings import ServeSettings
from demi.server.telemetry.tracing import InferenceRecord, Tracer, open_tracer
from tests.server.bundles import SCALE, write_bundle
from tests.server.fakes import loaded, message, open_fake
from tests.server.processes import serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ROW = message([1, 2, 3], shape=[1, 3])


@pytest.fixture
def exporter():
    """Return an exporter that keeps spans in memory."""
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter):
    """Return a tracer that exports immediately."""
    return Tracer(SimpleSpanProcessor(exporter))


def spans(exporter) -> dict[str, object]:
    """Return the finished spans by name."""
    return {span.name: span for span in exporter.get_finished_spans()}


def test_an_inference_is_three_spans(tracer, exporter):
    """`queue` and `compute` lie within `infer`, one after the other, with their measured durations."""
    answer = Answer({}, "fp16", queue_ns=200, compute_ns=300)
    tracer.record(InferenceRecord("m", "2", 1000, 2000, {"http.response.status_code": 200}, answer))
    found = spans(exporter)
    infer = found["infer m"]

    assert {"infer m", "queue", "compute"} == set(found)
    assert (1000, 2000) == (infer.start_time, infer.end_time)
    assert [(1500, 1700), (1700, 2000)] == [
        (found[name].start_time, found[name].end_time) for name in ("queue", "compute")
    ]
    assert {infer.context.span_id} == {found[name].parent.span_id for name in ("queue", "compute")}
    assert SpanKind.SERVER == infer.kind
    assert {
        "demi.model": "m",
        "demi.version": "2",
        "demi.precision": "fp16",
        "http.response.status_code": 200,
    } == dict(infer.attributes)
    assert "demi" == infer.resource.attributes["service.name"]


def test_parent_trace(tracer, exporter):
    """`traceparent` sets the parent of a span; an invalid one starts a new trace."""
    tracer.record(InferenceRecord("m", "1", 0, 1, {}), f"00-{TRACE}-{PARENT}-01", "vendor=1")
    tracer.record(InferenceRecord("other", "1", 0, 1, {}), "00-nonsense")
    found = spans(exporter)

    assert int(TRACE, 16) == found["infer m"].context.trace_id
    assert int(PARENT, 16) == found["infer m"].parent.span_id
    assert found["infer other"].parent is None


def test_unsampled_parent(tracer, exporter):
    """Spans below an unsampled parent are not recorded."""
    tracer.record(InferenceRecord("m", "1", 0, 1, {}, Answer({}, "fp16", 1, 1)), f"00-{TRACE}-{PARENT}-00")

    assert {} == spans(exporter)


def test_server_failures_are_errors(tracer, exporter):
    """Server failures are marked as errors, client errors are not."""
    tracer.record(InferenceRecord("bad", "1", 0, 1, {}, failed=True))
    tracer.record(InferenceRecord("good", "1", 0, 1, {}))

    assert StatusCode.ERROR == spans(exporter)["infer bad"].status.status_code
    assert StatusCode.UNSET == spans(exporter)["infer good"].status.status_code


async def ask(app, path: str, body: bytes, **headers: str) -> int:
    """Return the status of one request to the application."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        return (await client.post(path, content=body, headers=headers)).status_code


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_requests_are_traced(tracer, exporter, anyio_backend):
    """Answered, refused and unknown-model requests are traced with status, model, and times if any."""
    model = Model("m", "3", ServeSettings(max_queue=4))
    model.start(loaded(open_fake()))
    app = create_app(Repository([model]), ServeSettings(), tracer=tracer)
    statuses = [
        await ask(app, "/v2/models/m/infer", ROW, traceparent=f"00-{TRACE}-{PARENT}-01", **{"x-request-id": "r"}),
        await ask(app, "/v2/models/m/infer", b"{"),
        await ask(app, "/v2/models/nope/versions/7/infer", ROW),
    ]
    await asyncio.sleep(0)  # traces are written behind the answers
    model.close()
    good, bad, unknown = (span for span in exporter.get_finished_spans() if span.name.startswith("infer"))

    assert [200, 400, 404] == statuses
    assert statuses == [span.attributes["http.response.status_code"] for span in (good, bad, unknown)]
    assert ("m", "3", "fp16", "r") == tuple(
        good.attributes[f"demi.{name}"] for name in ("model", "version", "precision", "request_id")
    )
    assert int(TRACE, 16) == good.context.trace_id
    assert good.start_time < spans(exporter)["queue"].start_time <= spans(exporter)["compute"].end_time == good.end_time
    assert ("nope", "7") == (unknown.attributes["demi.model"], unknown.attributes["demi.version"])


def test_off_means_not_imported():
    """Without the setting there is no tracer and the SDK is not imported (FastAPI imports the API package)."""
    code = (
        "import sys; from demi.server.http.app import create_app; from demi.server.telemetry.tracing import open_tracer;"
        "from demi.server.settings import ServeSettings; assert open_tracer(ServeSettings()) is None;"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "[]" == output.strip()


def test_a_missing_package_is_named(monkeypatch):
    """The error names the extra that installs OpenTelemetry."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(PackageError) as error:
        open_tracer(ServeSettings(otel=True))

    assert "[otel]" in str(error.value.hint)


class Collector(BaseHTTPRequestHandler):
    """Collects OTLP exports over HTTP."""

    received: list[ExportTraceServiceRequest] = []  # noqa: RUF012 - one collector, one test

    def do_POST(self) -> None:
        """Receive one export."""
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Suppress the log line."""


def test_a_real_collector_gets_the_spans(tmp_path):
    """A server exports spans by OTLP, the last ones when it stops."""
    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    with serving(write_bundle(tmp_path / "b", SCALE), "--otel-endpoint", endpoint) as server:
        httpx.post(server.url + "/v2/models/scale/infer", content=ROW)
        assert 0 == server.stop(signal.SIGTERM)
    collector.shutdown()
    names = {
        span.name
        for request in Collector.received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }

    assert {"infer scale", "queue", "compute"} == names


def test_unreachable_collector(tmp_path):
    """Without a reachable collector, requests are answered and the server stops in time."""
    with serving(write_bundle(tmp_path / "b", SCALE), "--otel-endpoint", "http://127.0.0.1:9/v1/traces") as server:
        answer = httpx.post(server.url + "/v2/models/scale/infer", content=ROW)
        started = time.monotonic()

        assert 200 == answer.status_code
        assert 0 == server.stop(signal.SIGTERM)
        assert time.monotonic() - started < 10
