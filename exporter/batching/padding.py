"""Which axis requests of different lengths may be padded along: recognised at models with an attention mask, and tried.

A model qualifies when its integer inputs share a free axis besides the batch and one of them is a mask. Padded with zero
ids under a mask of zeros, its FP32 answers must not change, neither alone nor in a batch of different lengths; a model
whose padding leaks is served without.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from demi.accuracy.compare import relative_l2
from demi.bundles.manifest import PadSpec
from demi.calibration.samples import Samples
from demi.errors import DemiError
from demi.exporter.batching.trial_rows import join_rows
from demi.runtime.base import Session
from demi.tensors import Array, Feeds, TensorSpec

LONGER = 7
"""By how many elements the trial makes the axis longer."""

SAME = 1e-5
"""Relative L2 within which a padded FP32 answer is the same."""


def find_padding(session: Session, samples: Samples) -> PadSpec:
    """The axis that may be padded and what with; an empty PadSpec when there is none, or when padding changes answers."""
    axis = masked_axis(session.inputs)
    if axis is None:
        return PadSpec()
    padded = [spec for spec in session.inputs if axis in spec.shape[1:]]
    pad = PadSpec((axis,), {spec.name: 0 for spec in padded})
    same = all(_is_same(session, padded, axis, feeds) for feeds in samples.feeds)
    return pad if same and _holds_in_batches(session, pad, samples) else PadSpec()


def _holds_in_batches(session: Session, pad: PadSpec, samples: Samples) -> bool:
    """Whether rows of different lengths, padded to the longest, are answered in a batch as each of them is alone.

    Answers are cut back as a server does it, along the axes that are called what the padded one is.
    """
    axis = pad.axes[0]
    rows = rows_of_two_lengths(session.inputs, axis, samples.feeds[0])
    longest = max(_length_of(row, session.inputs, axis) for row in rows)
    try:
        alone = [session.run(row) for row in rows]
        joined = session.run(join_rows([_stretch(row, session.inputs, pad, longest) for row in rows]))
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
    """Two rows of a set as they are, and between them the first again, half as long: where it is 1 long, twice.

    All of them hold values of the samples, and mostly none is longer than those: positions may end there.
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


def _stretch(row: Feeds, inputs: Sequence[TensorSpec], pad: PadSpec, length: int) -> Feeds:
    """A row with its padded axis made that long."""
    result = dict(row)
    for spec in inputs:
        if pad.axes[0] in spec.shape[1:]:
            place = spec.shape.index(pad.axes[0], 1)
            width = [(0, length - size if at == place else 0) for at, size in enumerate(row[spec.name].shape)]
            result[spec.name] = np.pad(row[spec.name], width, constant_values=pad.values[spec.name])
    return result


def masked_axis(inputs: Sequence[TensorSpec]) -> str | None:
    """The one free axis besides the batch that all its inputs, integers and a mask among them, share; else None."""
    free = {dim for spec in inputs for dim in spec.shape[1:] if isinstance(dim, str)}
    if len(free) != 1:
        return None
    axis = free.pop()
    having = [spec for spec in inputs if axis in spec.shape[1:]]
    integers = all(spec.dtype.numpy.kind in "iu" for spec in having)
    has_mask = any("mask" in spec.name.lower() for spec in having)
    return axis if integers and has_mask and len(having) > 1 else None


def _is_same(session: Session, padded: Sequence[TensorSpec], axis: str, feeds: Feeds) -> bool:
    """Whether the answers stay the same where the padded axis is cut back to its length."""
    longer = dict(feeds)
    for spec in padded:
        width = [(0, LONGER if dim == axis else 0) for dim in spec.shape]
        longer[spec.name] = np.pad(feeds[spec.name], width)
    try:
        want, got = session.run(feeds), session.run(longer)
    except DemiError:  # there may be no positions beyond the samples'
        return False
    return all(relative_l2(want[name], _cut(got[name], want[name].shape)) <= SAME for name in want)


def _cut(array: Array, shape: tuple[int, ...]) -> Array:
    if array.ndim != len(shape):
        return array
    return array[tuple(slice(size) for size in shape)]
