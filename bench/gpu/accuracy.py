"""The error that the emulator predicts on a CPU, beside the error measured on the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from bench.gpu.models import HALVES, onnx_model
from bench.gpu.setup import PROBLEM, Row, Setup, first_line
from bench.gpu.shapes import fewest
from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparison, compare
from demi.calibration.samples import Samples
from demi.exporter.api import convert
from demi.exporter.conversion import emulate
from demi.runtime.base import CPU, Device
from demi.runtime.onnxruntime.session import open_session
from demi.tensors import Feeds

SEARCH_S = 8.0


def rows(setup: Setup) -> Iterator[Row]:
    """Yield one row for every output of every shape, in both half formats, on inputs that planning did not use."""
    for shape in fewest(setup.quick, "small"):
        model = onnx_model(shape)
        seen, unseen = [shape.inputs(2, seed) for seed in (1, 2)], [shape.inputs(2, seed) for seed in (3, 4)]
        fp32 = model.SerializeToString()
        references = answers(fp32, CPU, unseen)
        for precision in HALVES:
            named: Row = {"model": shape.name, "precision": precision}
            try:
                mixed = convert(model, seen, precision=precision, search_seconds=SEARCH_S).model
                predicted = emulate(ir.from_proto(mixed), Samples(tuple(unseen), "unseen"))
                device = Device.parse(setup.device)
                measured = answers(mixed.SerializeToString(), device, unseen)
                own_fp32 = answers(fp32, device, unseen)
            except Exception as error:
                yield named | {PROBLEM: first_line(error)}
                continue
            yield from (named | row for row in compared(references, predicted, measured, own_fp32))


def compared(
    references: list[Feeds], predicted: list[Feeds], measured: list[Feeds], own_fp32: list[Feeds]
) -> Iterator[Row]:
    """Return relative L2 of every output: predicted, measured, their ratio, and the distance of both halves."""
    prediction, measurement, between, single = (
        by_output(compare(want, got, Budget()))
        for want, got in ((references, predicted), (own_fp32, measured), (predicted, measured), (references, own_fp32))
    )
    for output, error in measurement.items():
        yield {
            "output": output,
            "predicted": prediction[output],
            "measured": error,
            "measured / predicted": error / prediction[output] if prediction[output] else None,
            "half against emulated": between[output],
            "FP32 against the CPU's": single[output],
        }


def by_output(comparison: Comparison) -> dict[str, float]:
    """Return the relative L2 of every output."""
    return {diff.output: diff.relative_l2 for diff in comparison.outputs}


def answers(model: bytes, device: Device, sets: list[Feeds]) -> list[Feeds]:
    """Return a model's outputs for each set of inputs."""
    session = open_session(model, device)
    types = {spec.name: spec.dtype.numpy for spec in session.inputs}
    return [
        session.run({name: np.asarray(array).astype(types[name], copy=False) for name, array in feeds.items()})
        for feeds in sets
    ]
