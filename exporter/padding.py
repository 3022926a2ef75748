"""Which axis requests of different lengths may be padded along: recognised at models with an attention mask, and tried.

A model qualifies when its integer inputs share a free axis besides the batch and one of them is a mask. Padded with zero
ids under a mask of zeros, its FP32 answers must not change; a model whose padding leaks is served without.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from calibration.observe import FAITHFUL
from calibration.samples import Samples
from calibration.sessions import session_for
from demi.compare import relative_l2
from demi.manifest import PadSpec
from demi.runtime.base import Session
from demi.tensors import Array, Feeds, TensorSpec

LONGER = 7
"""By how many elements the trial makes the axis longer."""

SAME = 1e-5
"""Relative L2 within which a padded FP32 answer is the same."""


def find_padding(prepared: ir.Model, samples: Samples) -> PadSpec:
    """The axis that may be padded and what with; an empty PadSpec when there is none, or when padding changes answers."""
    with session_for(prepared, settings=FAITHFUL) as session:
        axis = masked_axis(session.inputs)
        if axis is None:
            return PadSpec()
        padded = [spec for spec in session.inputs if axis in spec.shape[1:]]
        same = all(_is_same(session, padded, axis, feeds) for feeds in samples.feeds)
        return PadSpec((axis,), {spec.name: 0 for spec in padded}) if same else PadSpec()


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
    want, got = session.run(feeds), session.run(longer)
    return all(relative_l2(want[name], _cut(got[name], want[name].shape)) <= SAME for name in want)


def _cut(array: Array, shape: tuple[int, ...]) -> Array:
    if array.ndim != len(shape):
        return array
    return array[tuple(slice(size) for size in shape)]
