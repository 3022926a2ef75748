"""Verify a built engine on the golden inputs and time its layers."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from demi.accuracy.compare import Comparison, compare
from demi.bundles.bundle import Bundle
from demi.engines.record import ShapeRange
from demi.errors import OverBudgetError, TensorError
from demi.exporter.tensorrt.layers import Layer, read_layers
from demi.runtime.tensorrt.session import TrtSession
from demi.tensors import Feeds, check_feeds

log = logging.getLogger(__name__)

TIMED_RUNS = 10


def verify_engine(session: TrtSession, bundle: Bundle) -> Comparison | None:
    """Compare the engine's outputs for the golden inputs with FP32's; None where no golden inputs fit its shapes.

    TensorRT may sum half products in half, which the emulator does not cover. Raises OverBudgetError when the engine is
    over the bundle's budget.
    """
    golden = bundle.golden_or_none()
    references, answers = [], []
    for inputs, outputs in zip(golden.inputs, golden.outputs, strict=True) if golden else ():
        try:
            answers.append(session.run(check_feeds(session.inputs, inputs, cast_floats=True)))
            references.append(outputs)
        except TensorError as error:
            log.info("a golden set does not fit the engine: %s", error.message)
    if not answers:
        log.warning("no golden inputs fit the engine: its accuracy was not measured")
        return None
    judged = [bundle.manifest.varying.comparable(each, live=True) for each in references]
    comparison = compare(judged, answers, bundle.manifest.budget)
    if not comparison:
        raise OverBudgetError(
            "\n  ".join(["the engine is not within the bundle's accuracy budget:", *comparison.failures()]),
            where=f"{bundle.path}; no engine was written",
            hint="let matrix products sum in FP32 with --fp32-accumulate, or serve the bundle with ONNX Runtime",
        )
    return comparison


def time_layers(session: TrtSession, bundle: Bundle, ranges: Mapping[str, ShapeRange]) -> list[Layer]:
    """Return the engine's layers with their times at the optimal shapes, and the plan's precision for each."""
    text, times = session.time_layers(feeds_of(bundle, ranges), TIMED_RUNS)
    return read_layers(text, times, bundle.plan())


def feeds_of(bundle: Bundle, ranges: Mapping[str, ShapeRange]) -> Feeds:
    """Return golden inputs repeated to the optimal shapes; zeros where the bundle has none."""
    found = bundle.golden_or_none()
    golden = found.inputs[0] if found else {}
    zeros = {spec.name: np.zeros(1, spec.dtype.numpy) for spec in bundle.manifest.inputs}
    return {name: np.resize(golden.get(name, zeros[name]), each.opt) for name, each in ranges.items()}
