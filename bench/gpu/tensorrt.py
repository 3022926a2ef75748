"""TensorRT, if it is installed: strongly typed engines of the same FP16 bundles, by Demi's own builder and runner."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.gpu import peaks
from bench.gpu.serving import MOST_ROWS, write_bundle
from bench.gpu.setup import PROBLEM, Row, Setup, attempt, first_line
from bench.gpu.shapes import Shape, fewest
from bench.gpu.speed import beside
from bench.gpu.timing import measure
from demi.bundles.bundle import open_bundle
from demi.runtime.base import Device, Session


def rows(setup: Setup) -> Iterator[Row]:
    """Yield every shape and batch size; one row with the reason if TensorRT is missing."""
    try:
        build = builder()
    except Exception as error:
        yield {"model": "all", PROBLEM: first_line(error)}
        return
    for shape in fewest(setup.quick, "full"):
        bound = peaks.bound_of(setup, shape)
        try:
            session = build(setup, shape)
        except Exception as error:
            yield {"model": shape.name, PROBLEM: first_line(error)}
            continue
        for batch in setup.batches:
            found = attempt(
                partial(timed, setup, session, shape, batch), model=shape.name, precision="fp16", batch=batch
            )
            yield found | beside(bound("fp16", batch), found)


def timed(setup: Setup, session: Session, shape: Shape, batch: int) -> Row:
    """Return the latency of one engine at one batch size, copies to and from the device included."""
    feeds = shape.inputs(batch)
    return measure(lambda: session.run(feeds), setup.each_s).row(batch)


def builder() -> Any:
    """Return a function that makes a session from a shape. Raises PackageError when TensorRT is missing."""
    from demi.exporter.tensorrt.build import build_engine
    from demi.exporter.tensorrt.builder import EngineOptions
    from demi.runtime.tensorrt.session import open_engine, require_tensorrt

    require_tensorrt()

    def build(setup: Setup, shape: Shape) -> Session:
        bundle, device = open_bundle(write_bundle(setup, shape)), Device.parse(setup.device)
        built = build_engine(bundle, EngineOptions(device=device))
        specs = (bundle.manifest.inputs, bundle.manifest.outputs)
        session: Session = open_engine(built.path.read_bytes(), specs, device, MOST_ROWS)
        return session

    return build
