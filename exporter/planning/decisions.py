"""Decisions: nodes that turn numbers into indices, counts or a choice, and how near the closest other result is.

Rounding a number changes it a little; rounding a score that decides may change the result completely. A decision is
safe as long as the nearest other result is several times as far away as half moves the numbers it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from demi.exporter.operators import schemas
from demi.exporter.operators.integer_types import INTEGERS_AND_BOOL
from demi.exporter.planning.decision_distances import (
    between_distinct,
    between_ranks,
    between_selections,
    between_sides,
    from_boundary,
    from_half,
    from_splits,
    from_step,
    from_threshold,
    from_zero,
)
from demi.tensors import Array

COMPARISONS = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"})
"""Comparisons of two numbers: decisions where the result selects something (`_selects`); masks are for the emulator."""

SELECTORS = frozenset({"NonZero", "Compress", "If", "Loop", "Unique"})
"""Operators that return another shape, or run another branch, when a boolean input changes."""

LOGIC = frozenset(
    "And Or Xor Not Identity Cast Reshape Squeeze Unsqueeze Flatten Transpose Expand Concat Slice Gather".split()
)
"""Operators that pass a boolean on."""

DEQUANTIZING = frozenset("DequantizeLinear QLinearConv QLinearMatMul ConvInteger MatMulInteger".split())
"""Operators that treat integers as the numbers they represent."""

STEPS = frozenset({"Round", "Floor", "Ceil", "Sign"})
"""Operators whose floats are steps: numbers for whatever computes with them, and choices where they are an output."""

CARRIES_QUANTITY = LOGIC | frozenset({"Clip", "Min", "Max", "MaxPool"})
"""Operators that keep the numbers that integers represent."""


def decides_by(node: ir.Node) -> list[ir.Value]:
    """Return the float32 tensors by which a node decides; empty when it makes no decision that is used."""
    rule = _RULES.get(node.op_type) if node.domain in _DOMAINS else None
    if rule is None or not rule.decides(node):
        return []
    return [
        value for value in node.inputs[: rule.operands] if value is not None and value.name and schemas.is_float(value)
    ]


def is_quantity(node: ir.Node) -> bool:
    """Return whether the steps or integers a node makes are only used as numbers: then an error of one is a small error."""
    if node.op_type in STEPS:
        return not _reaches(node, CARRIES_QUANTITY)
    if node.op_type not in ("Cast", "QuantizeLinear", "DynamicQuantizeLinear"):
        return False
    seen, frontier = {node}, [node]
    while frontier:
        current = frontier.pop()
        for value in current.outputs:
            if value.is_graph_output():
                return False
            for use in value.uses():
                reader = use.node
                back = reader.op_type == "Cast" and schemas.is_float(reader.outputs[0])
                if reader in seen or back or reader.op_type in DEQUANTIZING:
                    continue
                if reader.op_type not in CARRIES_QUANTITY or (
                    use.idx > 0 and reader.op_type not in ("Min", "Max", "Concat")
                ):
                    return False
                seen.add(reader)
                frontier.append(reader)
    return True


def safety(node: ir.Node, tensors: Mapping[str, Array], errors: Mapping[str, float]) -> float:
    """Return the distance of the nearest other result, as a multiple of how far half moves the tensors that decide.

    `tensors` holds the FP32 numbers of one set of samples by name, `errors` the largest absolute change of each.
    Infinite when half cannot change the result; 0 when it is not known.
    """
    rule = _RULES[node.op_type]
    numbers = [_numbers(value, tensors) for value in node.inputs[: rule.operands]]
    moves = [errors.get(value.name or "", 0.0) if value is not None else 0.0 for value in node.inputs[: rule.operands]]
    if any(array is None for array in numbers):
        return 0.0
    return rule.safety(node, [array for array in numbers if array is not None], moves)


def gap(node: ir.Node, scores: Array) -> float:
    """Return how far the scores of a decision by one tensor are from another result, over all rows."""
    return _RULES[node.op_type].safety(node, [_finite(scores)], [1.0])


def _numbers(value: ir.Value | None, tensors: Mapping[str, Array]) -> Array | None:
    if value is None:
        return np.zeros(0)
    found = tensors.get(value.name or "")
    if found is None and value.const_value is not None:
        found = value.const_value.numpy()
    return None if found is None else _finite(found)


def _finite(array: Array) -> Array:
    return np.where(np.isfinite(array), array, np.copysign(np.finfo(np.float32).max, array)).astype(np.float64)


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _always(node: ir.Node) -> bool:
    return any(_is_used(value) for value in node.outputs)


def _ranks(node: ir.Node) -> bool:
    """Return whether the indices of a TopK are used: its values alone move no further than its scores."""
    return len(node.outputs) > 1 and _is_used(node.outputs[1])


def _truncates(node: ir.Node) -> bool:
    return node.outputs[0].dtype in INTEGERS_AND_BOOL and (
        node.outputs[0].dtype is not ir.DataType.BOOL or _selects(node)
    )


def _selects(node: ir.Node) -> bool:
    """Return whether the node's boolean reaches, through logic, a selecting operator or a graph output."""
    return _reaches(node, LOGIC, SELECTORS)


def _reaches(node: ir.Node, through: AbstractSet[str], ends: AbstractSet[str] = frozenset()) -> bool:
    """Return whether a node's results reach a graph output or an operator of `ends`, passed on by those of `through`."""
    seen, frontier = {node}, [node]
    while frontier:
        for value in frontier.pop().outputs:
            readers = {use.node for use in value.uses()}
            if value.is_graph_output() or any(reader.op_type in ends for reader in readers):
                return True
            found = {reader for reader in readers - seen if reader.op_type in through}
            seen |= found
            frontier += found
    return False


@dataclass(frozen=True, slots=True)
class _Rule:
    """One operator that decides: how many operands matter, when it decides, and the distance to another result."""

    operands: int
    decides: Callable[[ir.Node], bool]
    safety: Callable[[ir.Node, list[Array], list[float]], float]


_RULES: dict[str, _Rule] = {
    "ArgMax": _Rule(1, _always, between_ranks),
    "ArgMin": _Rule(1, _always, between_ranks),
    "Hardmax": _Rule(1, _always, between_ranks),
    "TopK": _Rule(1, _ranks, between_ranks),
    "Cast": _Rule(1, _truncates, from_step),
    "QuantizeLinear": _Rule(1, _always, from_boundary),
    "NonZero": _Rule(1, _always, from_zero),
    "Unique": _Rule(1, _always, between_distinct),
    "Sign": _Rule(1, _always, from_zero),
    "Round": _Rule(1, _always, from_half),
    "Floor": _Rule(1, _always, from_step),
    "Ceil": _Rule(1, _always, from_step),
    "Binarizer": _Rule(1, _always, from_threshold),
    "TreeEnsemble": _Rule(1, _always, from_splits),
    "TreeEnsembleClassifier": _Rule(1, _always, from_splits),
    "TreeEnsembleRegressor": _Rule(1, _always, from_splits),
    "NonMaxSuppression": _Rule(2, _always, between_selections),
    **{op: _Rule(2, _selects, between_sides) for op in COMPARISONS},
}
"""The operators that decide."""

_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
