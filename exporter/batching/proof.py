"""Whether requests may be joined along the first axis, and large ones split: proved by trial, in FP32.

The names of axes say how a tensor is laid out, and nothing of what its values depend on: a softmax over the batch, a
centring by its mean and a similarity of every row with every other look like any other model. So each row is run
alone, and then beside others (`row_trial.py`). What depends on the other rows, or shows nothing, is never joined.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir

from demi.bundles.manifest import BatchSpec
from demi.calibration.random_draws import random_nodes
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.errors import DemiError
from demi.exporter.batching.padding import find_padding
from demi.exporter.batching.row_trial import SLOW_S, DependentError, prove
from demi.exporter.batching.trial_rows import rows_to_try
from demi.exporter.planning.cropping import crop
from demi.runtime.base import Session
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds, TensorSpec


def find_batch(prepared: ir.Model, samples: Samples, max_size: int) -> BatchSpec:
    """Whether requests to a model may be joined and split, with the proof or the reason; and what may be padded.

    A model that draws random numbers is neither: no trial tells its noise from what other rows do to it.
    """
    if drawing := random_nodes(prepared):
        why = f"it draws random numbers (`{drawing[0].name}`), and no trial tells those from what other rows do"
        return BatchSpec(free=False, max_size=max_size, why_not=why)
    with session_for(prepared, settings=FAITHFUL) as session:
        found = try_rows(session, replace(samples, feeds=lighter_sets(prepared, session, samples.feeds)), max_size)
        if found.proof is None:
            return found
        pad = find_padding(session, samples)
        return replace(found, pad=pad, proof=replace(found.proof, padded=bool(pad.axes)))


def lighter_sets(
    prepared: ir.Model, session: Session, sets: Sequence[Feeds], clock: Callable[[], float] = time.perf_counter
) -> tuple[Feeds, ...]:
    """Parts of the sets on which a row takes about `SLOW_S`, where it takes longer and the model runs on parts.

    Whether rows look at each other is the same for a large image and for its middle.
    """
    row = {name: array[:1] for name, array in sets[0].items() if array.ndim}
    try:
        seconds = min(_seconds(session, row, clock) for _ in range(2))
        parts = [crop(prepared, feeds, SLOW_S / max(seconds, SLOW_S)) for feeds in sets]
        cropped = tuple(part for part in parts if part is not None)
        if len(cropped) < len(parts):
            return tuple(sets)
        session.run(cropped[0])
    except DemiError:  # it computes with the sizes it was made for; or does not run at all, which the trial will say
        return tuple(sets)
    return cropped


def _seconds(session: Session, feeds: Feeds, clock: Callable[[], float]) -> float:
    started = clock()
    session.run(feeds)
    return clock() - started


def try_rows(session: Session, samples: Samples, max_size: int) -> BatchSpec:
    """Whether each row gives the same answers alone and among others, with the proof or the reason why not."""
    try:
        check_rows(session.inputs)
        rows = rows_to_try(session.inputs, samples.feeds)
        return BatchSpec(free=True, max_size=max_size, proof=prove(session, rows, max_size))
    except DependentError as reason:
        return BatchSpec(free=False, max_size=max_size, why_not=str(reason))


def check_rows(inputs: Sequence[TensorSpec]) -> None:
    """Raise DependentError unless every input has a free first axis that is no other axis as well."""
    if not inputs:
        raise DependentError("the model has no inputs")
    inner = {dim: spec.name for spec in inputs for dim in spec.shape[1:] if isinstance(dim, str)}
    for spec in inputs:
        if not spec.shape:
            raise DependentError(f"input `{spec.name}` is a scalar, which has no rows")
        if isinstance(spec.shape[0], int):
            raise DependentError(f"the first axis of input `{spec.name}` is fixed at {spec.shape[0]}")
        if spec.shape[0] in inner:
            raise DependentError(
                f"axis `{spec.shape[0]}` is the first of input `{spec.name}`, and another of `{inner[spec.shape[0]]}`"
            )


def declare_rows(model: ir.Model, batch: BatchSpec, answers: Feeds) -> None:
    """Call the first axis of every output what that of the first input is called, where a trial has shown it is that.

    Exporters give it a name of its own (`Gemm_dim_0`), or write down the number of rows of their example; and where
    the `answers` of the model have more or fewer axes than it says, it is wrong about all of them.
    """
    if not batch.joins:
        return
    inputs = model.graph.inputs
    first = inputs[0].shape[0] if inputs[0].shape is not None else None
    rows = first.value if isinstance(first, ir.SymbolicDim) and first.value else f"{inputs[0].name}_axis0"
    for value in model.graph.outputs:
        rank = answers[value.name or ""].ndim
        known = value.shape is not None and len(value.shape) == rank
        rest = value.shape[1:] if value.shape is not None and known else _axes(value, rank)
        value.shape = ir.Shape([rows, *rest])


def _axes(value: ir.Value, rank: int) -> list[str]:
    """Names for all axes but the first."""
    return [f"{value.name}_axis{at}" for at in range(1, rank)]
