"""Fusions: recombine Gelu, hard swish and scaled dot-product attention from primitives into one operator.

One operator rounds once instead of five times, and keeps its exponentials and sums inside its kernel. The matcher and
the attention pattern are onnxscript's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from demi.exporter.passes.hard_swish import hard_swish_rules

OPSET_GELU = 20
OPSET_ATTENTION = 23

Pattern = Callable[..., Any]


def fusion_rules(model: ir.Model) -> list[Any]:
    """Return the rewrite rules for primitives in the model that its opset has as one operator."""
    opset = model.opset_imports.get("", 0)
    present = {node.op_type for node in model.graph.all_nodes()}
    rules: list[Any] = []
    if opset >= OPSET_GELU:
        rules += [rule for function, made in GELUS.items() if function in present for rule in made()]
    if opset >= OPSET_ATTENTION and "Softmax" in present:
        rules.append(_attention_rule())
    if present & {"Clip", "HardSigmoid"}:
        rules += hard_swish_rules(opset)
    return rules


def constants_last(model: ir.Model) -> None:
    """Write every sum and product with a constant as `x + c`, `x c`, so that patterns need only one order."""
    for node in model.graph.all_nodes():
        if node.op_type not in ("Add", "Mul") or node.domain != "":
            continue
        first, second = node.inputs
        if first is not None and second is not None and first.const_value is not None and second.const_value is None:
            node.replace_input_with(0, second)
            node.replace_input_with(1, first)


def _rules(gates: Sequence[Pattern], approximate: str) -> Callable[[], list[Any]]:
    def rules() -> list[Any]:
        both = (False, True)
        return [
            pattern.RewriteRule(_pattern(*choice), _gelu(approximate))
            for choice in itertools.product(PRODUCTS, gates, both, both)
        ]

    return rules


def _pattern(product: Pattern, gate: Pattern, swapped: bool, swapped_inside: bool) -> Pattern:
    """0.5 x gate(x), in one order of its factors."""

    def made(op: Any, x: Any) -> Any:
        return product(op, x, gate(op, x, swapped_inside), swapped)

    return made


def _gelu(approximate: str) -> Callable[[Any, ir.Value], ir.Value]:
    def rewrite(op: Any, x: ir.Value) -> ir.Value:
        made: ir.Value = op.Gelu(x, approximate=approximate)
        return made

    return rewrite


def _two(operator: Any, left: Any, right: Any, swapped: bool) -> Any:
    """Return a sum or product of two, in one of its orders."""
    return operator(right, left) if swapped else operator(left, right)


def _erf(op: Any, argument: Any) -> Any:
    return op.Add(op.Erf(argument), 1.0)


def _tanh(op: Any, x: Any, cube: Any, swapped: bool) -> Any:
    inner = _two(op.Add, x, op.Mul(cube, 0.044715), swapped)
    return op.Add(op.Tanh(op.Mul(inner, math.sqrt(2 / math.pi))), 1.0)


PRODUCTS: tuple[Pattern, ...] = (
    lambda op, x, gate, swapped: _two(op.Mul, op.Mul(x, 0.5), gate, swapped),
    lambda op, x, gate, swapped: op.Mul(_two(op.Mul, x, gate, swapped), 0.5),
    lambda op, x, gate, swapped: _two(op.Mul, x, op.Mul(gate, 0.5), swapped),
)
"""0.5 x gate"""

GELUS = {
    "Erf": _rules(
        (lambda op, x, _: _erf(op, op.Div(x, math.sqrt(2))), lambda op, x, _: _erf(op, op.Mul(x, math.sqrt(0.5)))),
        "none",
    ),
    "Tanh": _rules(
        (
            lambda op, x, swapped: _tanh(op, x, op.Pow(x, 3.0), swapped),
            lambda op, x, swapped: _tanh(op, x, op.Mul(op.Mul(x, x), x), swapped),
            lambda op, x, swapped: _tanh(op, x, op.Mul(x, op.Mul(x, x)), swapped),
        ),
        "tanh",
    ),
}
"""The gates 1 + erf(x / sqrt(2)) and 1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)), by their operator."""


def _attention_rule() -> Any:
    """softmax(scale Q K^T + mask) V, for Q, K and V of shape [batch, heads, positions, size]."""
    from onnxscript.rewriter.ort_fusions.sdpa import SDPA  # a slow import, which loads every fusion: only when needed

    attention: Any = SDPA()

    def check(context: Any, mask: ir.Value | None = None, **bound: Any) -> Any:
        """Match only where the shapes fit and no fully masked row is guarded: the operator returns NaN for one."""
        if mask is not None and any(node.op_type == "IsNaN" for node in context.nodes):
            return pattern.MatchResult().fail("fully masked rows are guarded")
        return attention.check(context, mask=mask, **bound)

    def rewrite(
        op: Any, query: ir.Value, key: ir.Value, value: ir.Value, mask: ir.Value | None, key_format: str, **_: Any
    ) -> Any:
        key = op.Transpose(key, perm=[0, 2, 1, 3]) if key_format == "BSHd" else key
        operands = [query, key, value] if mask is None else [query, key, value, mask]
        # The default precision of the softmax is the inputs' type, which may be half.
        return op.Attention(*operands, scale=attention._scale, softmax_precision=int(ir.DataType.FLOAT))

    return pattern.RewriteRule(attention.pattern, rewrite, check)
