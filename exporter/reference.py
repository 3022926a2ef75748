"""Run the FP32 model on the samples: its outputs are the reference for every measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from demi.accuracy.varying import Varying, varying
from demi.calibration.random_draws import random_nodes
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.errors import ConversionError
from demi.runtime.onnxruntime.first_open import open_tried
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds, TensorSpec


@dataclass(frozen=True, slots=True)
class Reference:
    """The FP32 model's outputs for every set of samples."""

    samples: Samples
    outputs: list[Feeds]
    varying: Varying
    """The outputs that differ from run to run."""


def run_reference(
    prepared: ir.Model, gather: Callable[[Sequence[TensorSpec]], Samples], first_feeds: Feeds | None = None
) -> Reference:
    """Run a prepared FP32 model on the samples that `gather` returns for its input specs.

    `first_feeds` are the inputs of the trial run in a process of its own (zeros without them). Raises SampleError as
    `gather` does, ConversionError when every output is random or the model still trains, and InferenceError when it does
    not run.
    """
    refuse_training(prepared)
    with session_for(prepared, settings=FAITHFUL, opener=partial(open_tried, feeds=first_feeds)) as session:
        samples = gather(session.inputs)
        outputs = [session.run(feeds) for feeds in samples.feeds]
        again = session.run(samples.feeds[0])
    return Reference(samples, outputs, find_varying(prepared, samples.feeds[0], (outputs[0], again)))


def refuse_training(prepared: ir.Model) -> None:
    """Raise ConversionError for BatchNormalization in training mode: ONNX Runtime changes its weights with every run."""
    for node in prepared.graph.all_nodes():
        if node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", 0) == 1:
            raise ConversionError(
                f"`{node.name}` (BatchNormalization) is in training mode: every request would change its statistics, and "
                "the answers of later ones",
                hint="export the model in evaluation mode: call model.eval() first",
            )


def find_varying(prepared: ir.Model, feeds: Feeds, fixed: tuple[Feeds, Feeds]) -> Varying:
    """Find the outputs that differ from run to run, also in `fixed`, two runs with the same random numbers.

    Raises ConversionError when nothing is left to compare.
    """
    live = fixed
    if random_nodes(prepared):
        with session_for(prepared, opener=open_tried) as session:
            live = (session.run(feeds), session.run(feeds))
    found = varying(live, fixed)
    if fixed[0] and not found.comparable(fixed[0]):
        raise ConversionError(
            "every output differs from run to run in FP32 itself, so the error of half cannot be measured",
            hint="pass the random numbers as an input, or convert without measuring (demi.convert with verify=False)",
        )
    return found
