"""The axis along which requests of different lengths may be padded: found in models with an attention mask, and tried.

A model qualifies if its integer inputs share a free axis besides the batch and one of them is a mask. With zero ids
under a mask of zeros as padding, its FP32 outputs must not change, neither alone nor in a batch of different lengths; if
they do, or an inner tensor does (`padded_tensors.py`), requests to the model are not padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from demi.accuracy.compare import relative_l2
from demi.bundles.manifest import PadSpec
from demi.calibration.samples import Samples
from demi.errors import DemiError
from demi.exporter.batching.padded_tensors import feels_padding
from demi.exporter.batching.trial_rows import join_rows
from demi.runtime.base import Session
from demi.tensors import Array, Feeds, TensorSpec

LONGER = 7
"""Number of elements by which the trial pads the axis."""

SAME = 1e-5
"""Relative L2 within which FP32 outputs with and without padding count as equal."""


def find_padding(session: Session, samples: Samples, model: ir.Model) -> PadSpec:
    """Return the axis that may be padded and its padding values; empty if there is none, or a tensor feels the padding."""
    axis = masked_axis(session.inputs)
    if axis is None:
        return PadSpec()
    padded = [spec for spec in session.inputs if axis in spec.shape[1:]]
    pad = PadSpec((axis,), {spec.name: 0 for spec in padded})
    same = all(_is_same(session, padded, axis, feeds) for feeds in samples.feeds)
    if not same or not _is_same_in_batches(session, pad, samples):
        return PadSpec()
    row = {name: array[:1] for name, array in samples.feeds[0].items()}
    length = _length_of(row, session.inputs, axis)
    padded_row = _padded(row, session.inputs, pad, length + LONGER)
    return PadSpec() if feels_padding(model, row, padded_row, (length, length + LONGER)) else pad


def _is_same_in_batches(session: Session, pad: PadSpec, samples: Samples) -> bool:
    """Return True if rows of different lengths, padded to the longest, have the same outputs in a batch as alone.

    Outputs are cut back as a server does it, along the axes that have the name of the padded one.
    """
    axis = pad.axes[0]
    rows = rows_of_two_lengths(session.inputs, axis, samples.feeds[0])
    longest = max(_length_of(row, session.inputs, axis) for row in rows)
    try:
        alone = [session.run(row) for row in rows]
        joined = session.run(join_rows([_padded(row, session.inputs, pad, longest) for row in rows]))
    except DemiError:
        return False
    for at, (row, want) in enumerate(zip(rows, alone, strict=True)):
        length = _length_of(row, session.inputs, axis)
        for spec in session.outputs:
            values = joined[spec.name]
            shape = spec.shape[: values.ndim]
            window = tuple(slice(length) if place and dim == axis else slice(None) for place, dim in enumerate(shape))
            if not relative_l2(want[spec.name], values[at : at + 1][window]) <= SAME:
                return False
    return True


def rows_of_two_lengths(inputs: Sequence[TensorSpec], axis: str, feeds: Feeds) -> list[Feeds]:
    """Return two rows of a set, and between them the first row at half its length, or at 2 if its length is 1.

    All rows hold values of the samples, and only a row of length 1 grows: a model may have no further positions.
    """
    first, last = (
        {name: array[at : at + 1] for name, array in feeds.items()} for at in (0, len(feeds[inputs[0].name]) - 1)
    )
    other = dict(first)
    length = _length_of(first, inputs, axis)
    for spec in inputs:
        if axis in spec.shape[1:]:
            indices = range(length // 2) if length > 1 else [0, 0]
            other[spec.name] = np.take(first[spec.name], indices, axis=spec.shape.index(axis, 1))
    return [first, other, last]


def _length_of(row: Feeds, inputs: Sequence[TensorSpec], axis: str) -> int:
    spec = next(spec for spec in inputs if axis in spec.shape[1:])
    return int(row[spec.name].shape[spec.shape.index(axis, 1)])


def _padded(row: Feeds, inputs: Sequence[TensorSpec], pad: PadSpec, length: int) -> Feeds:
    """Return a row padded to `length` along the padded axis."""
    result = dict(row)
    for spec in inputs:
        if pad.axes[0] in spec.shape[1:]:
            place = spec.shape.index(pad.axes[0], 1)
            width = [(0, length - size if at == place else 0) for at, size in enumerate(row[spec.name].shape)]
            result[spec.name] = np.pad(row[spec.name], width, constant_values=pad.values[spec.name])
    return result


def masked_axis(inputs: Sequence[TensorSpec]) -> str | None:
    """Return the only free axis besides the batch if its inputs are several of integers, one a mask; else None."""
    free = {dim for spec in inputs for dim in spec.shape[1:] if isinstance(dim, str)}
    if len(free) != 1:
        return None
    axis = free.pop()
    having = [spec for spec in inputs if axis in spec.shape[1:]]
    integers = all(spec.dtype.numpy.kind in "iu" for spec in having)
    has_mask = any("mask" in spec.name.lower() for spec in having)
    return axis if integers and has_mask and len(having) > 1 else None


def _is_same(session: Session, padded: Sequence[TensorSpec], axis: str, feeds: Feeds) -> bool:
    """Return True if the outputs with padding, cut back to the original length, equal those without."""
    longer = dict(feeds)
    for spec in padded:
        width = [(0, LONGER if dim == axis else 0) for dim in spec.shape]
        longer[spec.name] = np.pad(feeds[spec.name], width)
    try:
        want, got = session.run(feeds), session.run(longer)
    except DemiError:  # the model may have no positions beyond the samples' lengths
        return False
    return all(relative_l2(want[name], _cut(got[name], want[name].shape)) <= SAME for name in want)


def _cut(array: Array, shape: tuple[int, ...]) -> Array:
    if array.ndim != len(shape):
        return array
    return array[tuple(slice(size) for size in shape)]
