"""ONNX Runtime in each precision beside PyTorch's own half, and both beside the roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from bench.gpu import eager, models, peaks
from bench.gpu.resident import Resident
from bench.gpu.setup import PROBLEM, Row, Setup, attempt, first_line
from bench.gpu.shapes import Shape, shapes
from bench.gpu.timing import measure

Prepare = Callable[[int], Callable[[], object]]
"""Batch size to the call that is timed."""


def rows(setup: Setup) -> Iterator[Row]:
    """Yield every shape, runtime, precision and batch size."""
    for shape in shapes("tiny" if setup.quick else "full"):
        bound = peaks.bound_of(setup, shape)
        for (runtime, precision), open_way in ways(setup, shape).items():
            named: Row = {"model": shape.name, "runtime": runtime, "precision": precision}
            try:
                prepare = open_way()
            except Exception as error:
                yield named | {PROBLEM: first_line(error)}
                continue
            for batch in setup.batches:
                found = attempt(partial(timed, setup, prepare, batch), batch=batch)
                yield named | found | beside(bound(precision, batch), found)


def ways(setup: Setup, shape: Shape) -> dict[tuple[str, str], Callable[[], Prepare]]:
    """Return the runtimes and precisions to compare, each opened in its turn, so that one at a time takes memory."""
    found = models.files(setup, shape)

    def ort(precision: str, tf32: bool = False) -> Prepare:
        session = Resident(found[precision], setup.device, tf32=tf32)
        return lambda batch: session.load(shape.inputs(batch)).run

    def torch(precision: str) -> Prepare:
        module = eager.module_in(setup, shape, precision)
        return lambda batch: eager.caller(setup, module, shape, batch, precision)

    every: dict[tuple[str, str], Callable[[], Prepare]] = {("ONNX Runtime", "fp32"): partial(ort, "fp32")}
    if setup.is_cuda:
        every["ONNX Runtime", "tf32"] = partial(ort, "fp32", tf32=True)
    every |= {("ONNX Runtime", precision): partial(ort, precision) for precision in models.HALVES}
    every |= {("PyTorch eager", precision): partial(torch, precision) for precision in models.HALVES}
    return every


def timed(setup: Setup, prepare: Prepare, batch: int) -> Row:
    """Return latency and rows per second of one runtime and precision at one batch size."""
    return measure(prepare(batch), setup.each_s).row(batch)


def beside(bound_ms: float | None, found: Row) -> Row:
    """Return the roofline, and the share of it that was reached; 1 is the device's limit."""
    if bound_ms is None or PROBLEM in found:
        return {}
    return {"roofline ms": bound_ms, "of roofline": bound_ms / float(found["p50 ms"])}  # type: ignore[arg-type]
