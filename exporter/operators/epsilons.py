"""Epsilons of normalizations that half cannot hold, and need not.

x / sqrt(mean(x * x) + epsilon) adds the epsilon so that a row of zeros is not divided by zero. Where every mean on the
samples is so much larger that adding it changes nothing in half, its size does not matter, as long as it is not zero: an
epsilon that would vanish becomes half's smallest number. A row of zeros still gives zeros, and a mean that is smaller
than all of the samples' is about as coarse as half stores it anyway.

Only where what is divided is what was squared: elsewhere a smaller divisor would be another answer.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from demi.calibration.profile import RangeProfile
from demi.exporter.operators import schemas
from demi.float16 import HalfFormat
from demi.tensors import Array

UNFELT = 2.0**12
"""A sum in FP16 does not change by an addend that is so many times smaller: it is below half of the last digit."""


def find_epsilons(model: ir.Model, profile: RangeProfile, fmt: HalfFormat) -> frozenset[ir.Value]:
    """Return the epsilons of a prepared model that would vanish in half, and become its smallest number instead."""
    return frozenset(
        value
        for graph in (model.graph, *model.graph.subgraphs())
        for value in graph.initializers.values()
        if _vanishes(value, fmt) and _is_unfelt(value, profile, fmt)
    )


def floored(numbers: Array, fmt: HalfFormat) -> Array:
    """Return numbers of which none is nearer to zero than half's smallest; zeros stay."""
    least = np.copysign(np.float32(fmt.smallest_subnormal), numbers)
    return np.where((numbers != 0) & (np.abs(numbers) < fmt.smallest_subnormal), least, numbers)


def least_mean(node: ir.Node, epsilon: ir.Value, profile: RangeProfile) -> float:
    """Return the smallest mean that a normalization adds its epsilon to on the samples; 0 where `node` is no such Add."""
    if node.op_type != "Add" or len(node.inputs) != 2:
        return 0.0
    mean = node.inputs[0] if node.inputs[1] is epsilon else node.inputs[1]
    squared = _squared(mean)
    seen = profile.get(mean.name) if mean is not None else None
    if squared is None or seen is None or seen.low <= 0 or seen.nans or seen.infinities:
        return 0.0
    return seen.smallest if _only_divides(node.outputs[0], squared, inverted=False) else 0.0


def _vanishes(value: ir.Value, fmt: HalfFormat) -> bool:
    """Return whether a value is a constant number above 0 that half would make 0."""
    if not schemas.is_float(value) or value.const_value is None or value.const_value.size != 1:
        return False
    if value.is_graph_input() or value.is_graph_output():
        return False
    return 0 < _number(value) <= fmt.smallest_subnormal / 2


def _is_unfelt(value: ir.Value, profile: RangeProfile, fmt: HalfFormat) -> bool:
    """Return whether no mean on the samples, rounded to half, changes by an epsilon or by half's smallest number."""
    least = min((least_mean(use.node, value, profile) for use in value.uses()), default=0.0)
    return least >= UNFELT * max(_number(value), fmt.smallest_subnormal)


def _squared(mean: ir.Value | None) -> ir.Value | None:
    """Return the tensor whose squares were averaged or summed up; None where that is not what was made."""
    node = _origin(mean)
    if node is None:
        return None
    if node.op_type == "ReduceSumSquare":
        return _source(node.inputs[0])
    if node.op_type not in ("ReduceMean", "ReduceSum"):
        return None
    square = _origin(node.inputs[0])
    if square is None or square.op_type not in ("Mul", "Pow"):
        return None
    base, other = _source(square.inputs[0]), square.inputs[1]
    is_square = _source(other) is base if square.op_type == "Mul" else _number(other) == 2.0
    return base if is_square else None


def _only_divides(value: ir.Value, squared: ir.Value, *, inverted: bool) -> bool:
    """Return whether every reader takes the root of a value, and divides what was squared by it."""
    uses = value.uses()
    if not uses or value.is_graph_output():
        return False
    return all(_divides(use.node, use.idx, squared, inverted=inverted) for use in uses)


def _divides(node: ir.Node, position: int, squared: ir.Value, *, inverted: bool) -> bool:
    other = node.inputs[1 - position] if len(node.inputs) == 2 else None
    if node.op_type == "Identity" or (node.op_type == "Mul" and _number(other)):
        return _only_divides(node.outputs[0], squared, inverted=inverted)
    if inverted:
        return node.op_type == "Mul" and _source(other) is squared
    if node.op_type in ("Sqrt", "Reciprocal"):
        return _only_divides(node.outputs[0], squared, inverted=node.op_type == "Reciprocal")
    if node.op_type == "Pow" and position == 0 and _number(other) in (0.5, -0.5):
        return _only_divides(node.outputs[0], squared, inverted=_number(other) < 0)
    if node.op_type != "Div" or position != 1:
        return False
    if _number(other):
        return _only_divides(node.outputs[0], squared, inverted=True)
    return _source(other) is squared


def _source(value: ir.Value | None) -> ir.Value | None:
    """Return the tensor that a value is a multiple of: zeros stay zeros on the way."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Identity" or (node.op_type == "Mul" and _number(node.inputs[1])):
            value = node.inputs[0]
        else:
            break
    return value


def _origin(value: ir.Value | None) -> ir.Node | None:
    """Return the node that makes a tensor, but for a factor."""
    source = _source(value)
    return source.producer() if source is not None else None


def _number(value: ir.Value | None) -> float:
    """Return the number in a constant of one element; 0 for anything else."""
    if value is None or value.const_value is None or value.const_value.size != 1 or value.is_graph_input():
        return 0.0
    return float(value.const_value.numpy().reshape(-1)[0])
