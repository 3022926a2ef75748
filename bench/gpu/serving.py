"""Serving over HTTP beside the same session in a bare loop, with inputs and outputs in host memory in both."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.gpu import models
from bench.gpu.setup import Row, Setup, attempt
from bench.gpu.shapes import Shape, fewest
from bench.serving.load import measure_http
from bench.serving.models import measure_limit
from bench.serving.requests import first_row, http_request
from bench.serving.servers import Server, serving
from demi.accuracy.budget import Budget
from demi.bundles.bundle import Bundle, Golden, open_bundle, write_golden, write_manifest, writing
from demi.bundles.manifest import MODEL, SCHEMA, Manifest, Provenance
from demi.calibration.samples import Samples
from demi.exporter.batching.proof import try_rows
from demi.runtime.base import Device
from demi.runtime.onnxruntime.session import open_session

MOST_ROWS = 128


def rows(setup: Setup) -> Iterator[Row]:
    """Yield for each shape the bare loop and the server, with as many connections as rows in the loop's batches."""
    for shape in fewest(setup.quick, "full"):
        bundle = open_bundle(write_bundle(setup, shape))
        yield from measure(setup, bundle)


def measure(setup: Setup, bundle: Bundle) -> Iterator[Row]:
    """Yield the rows of one bundle."""
    row = first_row(bundle)
    request = http_request(bundle, row, binary=True)
    seconds = max(setup.each_s, 0.1)
    with serving(bundle.path, 0, "--device", setup.device) as server:
        measure_http(server, [request], min(4, max(setup.batches)), min(seconds, 0.5))
        for count in setup.batches:
            named: Row = {"model": bundle.manifest.name, "connections": count}
            device = Device.parse(setup.device)
            limit = measure_limit(bundle, row, min(count, MOST_ROWS), 0, seconds, device)
            yield named | {"what": "loop", "rows/s": limit.rate, "p50 ms": limit.percentile_ms(50), "errors": 0}
            yield named | {"what": "HTTP"} | attempt(partial(over_http, server, request, count, seconds, limit.rate))


def over_http(server: Server, request: bytes, count: int, seconds: float, limit: float) -> Row:
    """Return requests per second over this many connections, and their share of the loop's."""
    turn = measure_http(server, [request], count, seconds)
    return {
        "rows/s": turn.rate,
        "p50 ms": turn.percentile_ms(50),
        "p99 ms": turn.percentile_ms(99),
        "of loop": turn.rate / limit,
        "errors": turn.errors,
    }


def write_bundle(setup: Setup, shape: Shape) -> Path:
    """Return a bundle of the shape in FP16, written once for all sections."""
    model = models.files(setup, shape)["fp16"]
    path = setup.work / "bundles" / model.name.split(".")[0] / "1"
    if path.exists():
        return path
    session = open_session(model, Device.parse(setup.device))
    golden = shape.inputs(2)
    provenance = Provenance("2026-01-01T00:00:00Z", model.name, "0" * 64, {}, "none")
    with writing(path) as draft:
        (draft / MODEL).write_bytes(model.read_bytes())
        write_golden(draft, Golden([golden], [session.run(golden)]))
        single = open_session(models.files(setup, shape)["fp32"])
        batch = try_rows(single, Samples((golden,), "the golden inputs"), max_size=MOST_ROWS)
        inputs, outputs = session.inputs, session.outputs
        write_manifest(
            draft, Manifest(SCHEMA, path.parent.name, 1, "fp16", inputs, outputs, batch, Budget(), provenance)
        )
    return path
