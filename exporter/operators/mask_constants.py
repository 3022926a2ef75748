"""Attention masks: large negative constants that mean minus infinity.

A mask of -1e9 or finfo.min overflows half, but nothing is lost: softmax only needs it far below every score. Where
every path from such a constant leads into a softmax, the constant becomes `SATURATED` in half, and the mask and the
scores may stay half.

Why not minus infinity: a fully masked row would become NaN, where FP32 gives a uniform row. Why not -65,504: a mask
that is added twice, or to negative scores, would overflow again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from demi.calibration.emulation.widen import EXACT_OPS
from demi.calibration.profile import RangeProfile
from demi.exporter.operators import schemas
from demi.float16 import BF16, FP16, HalfFormat
from demi.tensors import Array

SATURATED = {FP16: -30_000.0, BF16: -1e37}
"""The value of a mask constant in half: even twice it fits."""

LARGE = 10_000.0
"""A mask constant is at least this far below zero."""

SCORES = 1_000.0
"""Scores of a larger magnitude than this might reach down to a saturated mask: such masks are not saturated."""

ENDS = frozenset({"Softmax", "LogSoftmax"})
MASK_OPERANDS = {
    ("", "Attention"): 3,
    ("com.microsoft", "Attention"): 5,
    ("com.microsoft", "MultiHeadAttention"): 5,
    ("com.microsoft", "BiasSoftmax"): 1,
}
"""Operators with a softmax inside, and the position of what they add to the scores before it."""

CARRIES = EXACT_OPS | {"Add", "Sum"}


@dataclass(frozen=True, slots=True)
class Masks:
    """The constants that are masks, and the tensors they reach before a softmax."""

    constants: frozenset[ir.Value] = frozenset()
    reached: frozenset[ir.Value] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """Return the constants' names, for the plan."""
        return frozenset(value.name or "" for value in self.constants)


def saturate(numbers: Array, fmt: HalfFormat) -> Array:
    """Return a mask constant with its large finite values clamped to `SATURATED`; minus infinity stays."""
    return np.where(np.isfinite(numbers), np.maximum(numbers, np.float32(SATURATED[fmt])), numbers)


def find_masks(model: ir.Model, profile: RangeProfile, fmt: HalfFormat) -> Masks:
    """Find the masks of a prepared model. A doubtful constant is not a mask; the overflow rules protect it."""
    constants: set[ir.Value] = set()
    reached: set[ir.Value] = set()
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if not _may_mask(value, fmt):
                continue
            chain: set[ir.Value] = set()
            if _leads_to_softmax(value, chain, profile):
                constants.add(value)
                reached |= chain
    return Masks(frozenset(constants), frozenset(reached))


def _may_mask(value: ir.Value, fmt: HalfFormat) -> bool:
    """Return whether a float constant has values beyond half or far below zero, and no large positive ones."""
    if not schemas.is_float(value) or value.const_value is None or value.is_graph_input() or value.is_graph_output():
        return False
    numbers = value.const_value.numpy()
    finite = numbers[np.isfinite(numbers)]
    if not finite.size or np.isnan(numbers).any() or np.isposinf(numbers).any():
        return False
    small = np.abs(finite) <= SCORES
    return bool(finite.min() < SATURATED[fmt] and np.all(small | (finite <= -LARGE)))


def _leads_to_softmax(value: ir.Value, chain: set[ir.Value], profile: RangeProfile) -> bool:
    """Return whether every reader of the value passes it on or adds it to scores, until a softmax takes it."""
    chain.add(value)
    if value.is_graph_output() or not value.uses():
        return False
    for use in value.uses():
        node = use.node
        if node.op_type in ENDS or MASK_OPERANDS.get((node.domain, node.op_type)) == use.idx:
            continue
        if not (node.op_type in CARRIES or _scales_a_mask(node, value, profile)) or not node.outputs:
            return False
        others = [
            other for other in node.inputs if other is not None and other is not value and schemas.is_float(other)
        ]
        if node.op_type != "Mul" and not all(other in chain or _are_scores(other, profile) for other in others):
            return False
        for output in node.outputs:
            if output not in chain and not _leads_to_softmax(output, chain, profile):
                return False
    return True


def _scales_a_mask(node: ir.Node, value: ir.Value, profile: RangeProfile) -> bool:
    """`(1 - mask) * constant`, with a mask between 0 and 1."""
    if node.op_type != "Mul" or value.const_value is None:
        return False
    other = next((v for v in node.inputs if v is not None and v is not value), None)
    found = profile.get(other.name) if other is not None else None
    return found is not None and found.low >= 0 and found.high <= 1


def _are_scores(value: ir.Value, profile: RangeProfile) -> bool:
    """Ordinary numbers, or another mask: nothing large and positive, and what is not large is small."""
    found = profile.get(value.name)
    if found is None:
        return False
    return found.high <= SCORES and (found.low >= -SCORES or found.low <= -LARGE)
