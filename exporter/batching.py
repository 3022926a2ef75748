"""Whether requests may be joined along the first axis, and large ones split: proved by trial, in FP32.

The names of axes say how a tensor is laid out, and nothing of what its values depend on: a softmax over the batch, a
centring by its mean and a similarity of every row with every other look like any other model. So each row is run
alone, and then beside others, very different ones among them, in several orders and numbers: its answers have to stay
the same. What depends on the other rows, or cannot be told, is never joined.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from calibration.observe import FAITHFUL
from calibration.samples import Samples
from calibration.sessions import session_for
from demi.errors import DemiError
from demi.manifest import BatchProof, BatchSpec
from demi.runtime.base import Session
from demi.tensors import Array, Feeds, TensorSpec
from exporter.padding import find_padding, holds_in_batches
from exporter.rows import Row, join_rows, rows_to_try

SAME = 1e-5
"""Relative L2 within which a row's FP32 answer is the same: kernels sum in another order for another number of rows."""

SAME_MADE = 1e-3
"""The same for rows that were made up, on which a model may be at the edge of what FP32 can do."""

FLOOR = 0.01
"""Answers this much smaller than others of the output are compared on the scale of the others."""

LARGEST_RUN_S = 5.0
"""About how long the largest batch may take."""

SLOW_S = 1.0
"""A model that takes longer for a row is tried in as few runs as can show anything."""

LARGEST_RUN_ELEMENTS = 1 << 24
"""How many elements its inputs and outputs may have."""


ROWS = 5
"""How many different rows are tried: two of the samples, and three that are made."""


class DependentError(Exception):
    """Rows of this model cannot be put together; the text says why."""


@dataclass(frozen=True, slots=True)
class Alone:
    """A row with its answers where nothing else is in the batch."""

    row: Row
    answers: Feeds


def find_batch(prepared: ir.Model, samples: Samples, max_size: int) -> BatchSpec:
    """Whether requests to a model may be joined and split, with the proof or the reason; and what may be padded."""
    with session_for(prepared, settings=FAITHFUL) as session:
        found = try_rows(session, samples, max_size)
        if found.proof is None:
            return found
        pad = find_padding(prepared, samples)
        if not pad.axes or not holds_in_batches(session, pad, samples):
            return found
        return replace(found, pad=pad, proof=replace(found.proof, padded=True))


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
                f"the first axis of input `{spec.name}`, `{spec.shape[0]}`, is another axis of `{inner[spec.shape[0]]}`"
            )


def prove(session: Session, rows: Sequence[Row], max_size: int) -> BatchProof:
    """The proof that each of the rows gives the same alone and among the others; DependentError where it does not."""
    alone, seconds = _run_alone(session, rows)
    if len(alone) < 2:
        raise DependentError("the samples hold a single row, and no other is known to be valid beside it")
    scales = _scales(alone)
    batches = plan_batches(len(alone), largest_size(alone[0], seconds, max_size), is_slow=seconds > SLOW_S)
    largest = max(_try_batch(session, [alone[at] for at in batch], scales) for batch in batches)
    sizes = tuple(sorted({1, *map(len, batches)}))
    return BatchProof(sizes=sizes, rows=len(alone), runs=len(alone) + 1 + len(batches), difference=largest)


def plan_batches(rows: int, largest: int, *, is_slow: bool = False) -> list[list[int]]:
    """Which rows to put together: in pairs, three at a time, and as many as the largest run takes, in mixed order.

    The first row, one of the samples, meets each of the others, before it and behind it; those of a slow model all at
    once.
    """
    if is_slow and largest >= rows:
        return [[1, 0], [*range(1, rows), 0]]
    batches = [[0, other] if other % 2 else [other, 0] for other in range(1, rows)]
    if largest >= 3:
        batches.append([1, rows - 1, 0])
    if largest > 3:
        order = np.random.default_rng(0).permutation(largest) % rows
        batches.append([int(row) for row in order])
    return batches


def largest_size(alone: Alone, seconds: float, max_size: int) -> int:
    """The rows of the largest run: as many as the server may join, unless that takes too long or too much memory."""
    elements = sum(array.size for feeds in (alone.row.feeds, alone.answers) for array in feeds.values())
    fits = min(LARGEST_RUN_S / max(seconds, 1e-9), LARGEST_RUN_ELEMENTS / max(elements, 1))
    return max(2, min(max_size, max(ROWS, int(fits))))


def difference(want: Array, got: Array, scale: float) -> float:
    """The length of the difference over that of `want`, or over `scale` where that is more; infinite where other types
    differ at all, and where only one of the two is finite."""
    if want.shape != got.shape:
        return float("inf")
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(want, got) else float("inf")
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    error = _length(got[finite].astype(np.float64) - want[finite])
    signal = max(_length(want[finite]), scale)
    return error / signal if signal else float("inf" if error else 0)


def _run_alone(session: Session, rows: Sequence[Row]) -> tuple[list[Alone], float]:
    """Each row with its own answers, and the seconds of the quickest run; made rows that fail are left out."""
    alone: list[Alone] = []
    seconds = float("inf")
    for row in rows:
        started = time.perf_counter()
        try:
            answers = session.run(row.feeds)
        except DemiError as error:
            if row.made:
                continue
            raise DependentError(f"a single row fails: {_words(error)}") from error
        seconds = min(seconds, time.perf_counter() - started)
        _check_count(answers, 1)
        alone.append(Alone(row, answers))
    if alone:
        _check_repeats(session, alone[0])
    return alone, seconds


def _check_repeats(session: Session, first: Alone) -> None:
    """Raise DependentError where the same row is not answered the same twice: nothing can be told of such a model."""
    for name, values in session.run(first.row.feeds).items():
        if difference(first.answers[name], values, 0.0) > SAME:
            raise DependentError(f"`{name}` differs from run to run on the same input: it is random, or keeps state")


def _check_count(answers: Feeds, rows: int) -> None:
    """Raise DependentError unless every output has as many rows as the inputs."""
    for name, values in answers.items():
        if values.ndim == 0:
            raise DependentError(f"`{name}` is a scalar, which has no rows")
        if len(values) != rows:
            raise DependentError(f"`{name}` has shape {list(values.shape)} for a batch of {rows}: no row for each")


def _scales(alone: Sequence[Alone]) -> Feeds:
    """By output, the least length that answers are measured by: a part of the mean length over the samples' rows."""
    answers = [each.answers for each in alone if not each.row.made]
    return {
        name: np.asarray(FLOOR * np.mean([_length(found[name][np.isfinite(found[name])]) for found in answers]))
        for name, values in answers[0].items()
        if values.dtype.kind == "f"
    }


def _length(values: Array) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


def _try_batch(session: Session, batch: Sequence[Alone], scales: Feeds) -> float:
    """The largest difference of a row in a batch from the same row alone; DependentError where it is too large."""
    size = len(batch)
    try:
        answers = session.run(join_rows([each.row.feeds for each in batch]))
    except DemiError as error:
        raise DependentError(f"a batch of {size} rows fails: {_words(error)}") from error
    _check_count(answers, size)
    largest = 0.0
    for name, values in answers.items():
        scale = float(scales.get(name, 0.0))
        for at, each in enumerate(batch):
            want, got = each.answers[name], values[at : at + 1]
            if want.shape != got.shape:
                raise DependentError(
                    f"`{name}` has another shape beside other rows: {list(want.shape)} alone, {list(got.shape)} of {size}"
                )
            if each.row.made and not _is_telling(want):
                continue
            found = difference(want, got, scale)
            if found > (SAME_MADE if each.row.made else SAME):
                by = f" by {found:.2g} relative L2" if np.isfinite(found) else ""
                raise DependentError(
                    f"`{name}` depends on the other rows of a batch: among {size}, a row is answered otherwise{by}"
                )
            largest = max(largest, found)
    return largest


def _words(error: DemiError) -> str:
    """What a runtime says, without the places in its own source."""
    return re.sub(r"/\S+\.(?:cc|h):\d+ .*? was false\. ", "", error.message)


def _is_telling(answer: Array) -> bool:
    """Whether the answer to a made row says anything of dependence: choices between equals and overflows do not."""
    return answer.dtype.kind == "f" and bool(np.isfinite(answer).all())


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
