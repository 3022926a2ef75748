"""Proof by trial, in FP32, that requests may be joined along the first axis and large ones split.

Axis names describe the layout of a tensor, not the dependencies of its values: a softmax over the batch, centring by
the batch mean and a similarity of every pair of rows look like any other model. Each row is therefore run alone, and
then beside others (`row_trial.py`). Requests are never joined if outputs depend on other rows, if the trial proves
nothing, or if rows meet where the samples' outputs do not show it: in a value that all share (`shared_values.py`), or in
an inner tensor (`mixed_rows.py`).
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
from demi.exporter.batching.mixed_rows import mixed_rows
from demi.exporter.batching.padding import find_padding
from demi.exporter.batching.row_shapes import row_shapes
from demi.exporter.batching.row_trial import DependentError, prove
from demi.exporter.batching.shared_values import shared_value
from demi.exporter.batching.trial_rows import Row, rows_to_try
from demi.exporter.planning.cropping import crop
from demi.runtime.base import Session
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds, TensorSpec


def find_batch(prepared: ir.Model, samples: Samples, max_size: int) -> BatchSpec:
    """Find out whether requests to a model may be joined and split, with proof or reason, and which axis may be padded.

    Requests to a model that draws random numbers are not joined: a trial cannot separate its noise from the effect of
    other rows.
    """
    if drawing := random_nodes(prepared):
        why = f"it draws random numbers (`{drawing[0].name}`), so a trial cannot show whether rows depend on each other"
        return BatchSpec(free=False, max_size=max_size, why_not=why)
    with session_for(prepared, settings=FAITHFUL) as session:
        lighter = replace(samples, feeds=lighter_sets(prepared, session, samples.feeds))
        found = try_rows(session, lighter, max_size)
        if found.proof is None:
            return found
        if meeting := _meeting(prepared, session, rows_to_try(session.inputs, lighter.feeds)):
            return BatchSpec(free=False, max_size=max_size, why_not=f"{meeting}, so that a row may change others")
        pad = find_padding(session, samples, prepared)
        return replace(found, pad=pad, proof=replace(found.proof, padded=bool(pad.axes)))


def _meeting(prepared: ir.Model, session: Session, rows: Sequence[Row]) -> str:
    """Return where rows meet inside of a model, in words; empty if they do not."""
    try:
        shapes = row_shapes(prepared, rows[0].feeds)
        valid = [row.feeds for row in rows if not row.synthetic or _runs(session, row.feeds)]
        return shared_value(prepared, shapes) or mixed_rows(prepared, shapes, valid)
    except DemiError as error:
        return f"its inner tensors cannot be read ({error.message})"


def _runs(session: Session, feeds: Feeds) -> bool:
    try:
        session.run(feeds)
    except DemiError:
        return False
    return True


LIGHT_S = 0.02
"""Approximate time of a row in seconds, to which rows of images and sequences are cropped."""


def lighter_sets(
    prepared: ir.Model, session: Session, sets: Sequence[Feeds], clock: Callable[[], float] = time.perf_counter
) -> tuple[Feeds, ...]:
    """Return crops of the sets on which a row takes about `LIGHT_S`, if it takes longer and the model runs on crops.

    Rows depend on each other in a crop of a large image if they do in the whole image.
    """
    row = {name: array[:1] for name, array in sets[0].items() if array.ndim}
    try:
        seconds = min(_seconds(session, row, clock) for _ in range(2))
        parts = [crop(prepared, feeds, LIGHT_S / max(seconds, LIGHT_S)) for feeds in sets]
        cropped = tuple(part for part in parts if part is not None)
        if len(cropped) < len(parts):
            return tuple(sets)
        session.run(cropped[0])
    except DemiError:  # the model requires its own sizes, or does not run at all, which the trial will report
        return tuple(sets)
    return cropped


def _seconds(session: Session, feeds: Feeds, clock: Callable[[], float]) -> float:
    started = clock()
    session.run(feeds)
    return clock() - started


def try_rows(session: Session, samples: Samples, max_size: int) -> BatchSpec:
    """Find out whether each row has the same outputs alone and beside others; return the proof or the reason."""
    try:
        check_rows(session.inputs)
        rows = rows_to_try(session.inputs, samples.feeds)
        return BatchSpec(free=True, max_size=max_size, proof=prove(session, rows, max_size))
    except DependentError as reason:
        return BatchSpec(free=False, max_size=max_size, why_not=str(reason))


def check_rows(inputs: Sequence[TensorSpec]) -> None:
    """Raise DependentError unless every input has a free first axis whose name no other axis has."""
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
    """Give the first axis of every output the name of the first input's first axis, if a trial has proved it.

    Exporters give it another name (`Gemm_dim_0`) or the number of rows of their example. If an output in `answers` has
    another number of axes than declared, all its declared axes are replaced.
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
    """Return names for all axes but the first."""
    return [f"{value.name}_axis{at}" for at in range(1, rank)]
