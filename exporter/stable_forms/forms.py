"""Expressions that leave half's range on the way to an ordinary result, and forms of them that do not: one row for each.

A form is the same function over the real numbers, and its FP32 answers differ by rounding: it is safe, and not exact. It
never overflows where the expression did not. The matcher is onnxscript's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from demi.exporter.passes.fusions import constants_last

RULE = pattern.RULE_NAME_TAG if hasattr(pattern, "RULE_NAME_TAG") else "pkg.onnxscript.rewriter.rule_name"
"""The key under which the rewriter notes on a new node which rule made it."""

OPSET_AXES_AS_INPUT = 13
"""First opset in which ReduceSum takes its axes as an input, and Softmax is about one axis."""
OPSET_ALL_AXES_AS_INPUT = 18
"""First opset in which the other reductions do."""

FINITE = 65504.0
"""Magnitude to which a maximum is limited before it is subtracted: infinity minus infinity is not a number."""


@dataclass(frozen=True, slots=True)
class Form:
    """One rewriting."""

    name: str
    words: str
    """The expression and its form, for people."""
    operator: str
    """An operator without which nothing matches."""
    rules: Callable[[Form, int, Collection[str]], Sequence[Any]]

    def apply(self, model: ir.Model, near: Collection[str]) -> bool:
        """Rewrite, in place, each expression that one of the nodes in `near` (names) belongs to; return whether one was."""
        if not any(node.op_type == self.operator for node in model.graph if node.name in near):
            return False
        constants_last(model)
        opset = model.opset_imports.get("", 0)
        rules = pattern.RewriteRuleSet(list(self.rules(self, opset, near)), commute=True)
        return rules.apply_to_model(model) > 0


def _rule(form: Form, near: Collection[str], expression: Callable[..., Any], rewritten: Callable[..., Any]) -> Any:
    """Return a rule that applies where the expression holds one of the nodes in `near`."""

    def check(context: Any, **_: Any) -> bool:
        return any(node.name in near for node in context.nodes)

    return pattern.RewriteRule(expression, rewritten, check, name=form.name)


def _softplus(form: Form, opset: int, near: Collection[str]) -> Sequence[Any]:
    def expression(op: Any, x: Any) -> Any:
        return op.Log(op.Add(op.Exp(x), 1.0))

    return [_rule(form, near, expression, lambda op, x: op.Softplus(x))]


def _mish(form: Form, opset: int, near: Collection[str]) -> Sequence[Any]:
    """n = e^x (e^x + 2), for the quotient n / (n + 2) times x, or x n / (n + 2)."""

    def product_first(op: Any, x: Any) -> Any:
        e = op.Exp(x)
        n = op.Mul(e, op.Add(e, 2.0))
        return op.Div(op.Mul(x, n), op.Add(n, 2.0))

    def quotient_first(op: Any, x: Any) -> Any:
        e = op.Exp(x)
        n = op.Mul(e, op.Add(e, 2.0))
        return op.Mul(x, op.Div(n, op.Add(n, 2.0)))

    def rewritten(op: Any, x: ir.Value) -> Any:
        return op.Mul(x, op.Tanh(op.Softplus(x)))

    return [_rule(form, near, each, rewritten) for each in (product_first, quotient_first)]


def _log_sum_exp(form: Form, opset: int, near: Collection[str]) -> Sequence[Any]:
    def with_input(op: Any, x: Any, axes: Any) -> Any:
        return op.Log(op.ReduceSum(op.Exp(x), axes, _outputs=["total"]))

    def with_attribute(op: Any, x: Any) -> Any:
        return op.Log(op.ReduceSum(op.Exp(x), _outputs=["total"]))

    def rewritten(op: Any, x: ir.Value, total: ir.Value, axes: ir.Value | None = None) -> Any:
        where = _axes_of(total, axes)
        if where is None:
            return None
        largest = op.Clip(
            _maximum(op, x, where, keep=True, opset=opset),
            op.Constant(value_float=-FINITE),
            op.Constant(value_float=FINITE),
        )
        keep = _keeps(total)
        given = (axes,) if axes is not None else ()
        attributes = {"keepdims": int(keep)} | ({} if given else {"axes": where})
        left = op.Log(op.ReduceSum(op.Exp(op.Sub(x, largest)), *given, **attributes))
        if keep:
            return op.Add(left, largest)
        shown = _maximum(op, x, where, keep=False, opset=opset)
        return op.Add(left, op.Clip(shown, op.Constant(value_float=-FINITE), op.Constant(value_float=FINITE)))

    expressions = [with_input] if opset >= OPSET_AXES_AS_INPUT else [with_attribute]
    return [_rule(form, near, each, rewritten) for each in expressions]


def _maximum(op: Any, x: ir.Value, axes: Sequence[int], *, keep: bool, opset: int) -> Any:
    if opset >= OPSET_ALL_AXES_AS_INPUT:
        return op.ReduceMax(x, op.Constant(value_ints=list(axes)), keepdims=int(keep))
    return op.ReduceMax(x, axes=list(axes), keepdims=int(keep))


def _softmax(form: Form, opset: int, near: Collection[str]) -> Sequence[Any]:
    def expression(op: Any, x: Any, axes: Any) -> Any:
        e = op.Exp(x)
        return op.Div(e, op.ReduceSum(e, axes, _outputs=["total"]))

    def rewritten(op: Any, x: ir.Value, axes: ir.Value, total: ir.Value) -> Any:
        where = _axes_of(total, axes)
        if where is None or len(where) != 1 or not _keeps(total):
            return None
        return op.Softmax(x, axis=where[0])

    return [_rule(form, near, expression, rewritten)] if opset >= OPSET_AXES_AS_INPUT else []


def _difference(form: Form, opset: int, near: Collection[str]) -> Sequence[Any]:
    def expression(op: Any, above: Any, below: Any) -> Any:
        return op.Div(op.Exp(above), op.Exp(below))

    return [_rule(form, near, expression, lambda op, above, below: op.Exp(op.Sub(above, below)))]


def _mean(form: Form, opset: int, near: Collection[str]) -> Sequence[Any]:
    def mean(op: Any, x: Any, axes: Any) -> Any:
        return op.ReduceMean(x, axes, _outputs=["total"])

    def quotient(op: Any, x: Any, axes: Any, count: Any) -> Any:
        return op.Div(op.ReduceSum(x, axes, _outputs=["total"]), count)

    def rewritten(op: Any, x: ir.Value, axes: ir.Value, total: ir.Value, count: ir.Value | None = None) -> Any:
        terms = _terms(x, _axes_of(total, axes)) if count is None else _number(count)
        if terms is None or terms <= 1:
            return None
        share = op.Mul(x, op.Constant(value_float=1.0 / terms))
        return op.ReduceSum(share, axes, keepdims=int(_keeps(total)))

    expressions: list[Callable[..., Any]] = [quotient] if opset >= OPSET_AXES_AS_INPUT else []
    expressions += [mean] if opset >= OPSET_ALL_AXES_AS_INPUT else []
    return [_rule(form, near, each, rewritten) for each in expressions]


def _axes_of(total: ir.Value, axes: ir.Value | None) -> list[int] | None:
    """Return the axes that a reduction is over; None where they are computed, or are all of them."""
    node = total.producer()
    assert node is not None
    if axes is None:
        return list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None
    tensor = axes.const_value
    return [int(axis) for axis in tensor.numpy().reshape(-1)] if tensor is not None and tensor.size else None


def _keeps(total: ir.Value) -> bool:
    """Return whether a reduction keeps the axes that it is over."""
    node = total.producer()
    return node is None or bool(node.attributes.get_int("keepdims", 1))


def _terms(x: ir.Value, axes: Sequence[int] | None) -> int | None:
    """Return the number of elements in a sum over these axes; None where it is not fixed."""
    if axes is None or x.shape is None:
        return None
    sizes = [x.shape[axis] for axis in axes]
    return (
        math.prod(size for size in sizes if isinstance(size, int)) if all(isinstance(s, int) for s in sizes) else None
    )


def _number(value: ir.Value) -> float | None:
    """Return the number in a scalar constant; None for anything else."""
    tensor = value.const_value
    return float(np.asarray(tensor.numpy()).reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


FORMS = (
    Form("softplus", "log(1 + exp(x)) as Softplus, which is x where the exponential overflows", "Exp", _softplus),
    Form("mish", "x n / (n + 2) with n = e^x (e^x + 2) as x tanh(softplus(x))", "Exp", _mish),
    Form("logsumexp", "log(sum(exp(x))) with the maximum subtracted before the exponential", "Exp", _log_sum_exp),
    Form("softmax", "exp(x) / sum(exp(x)) as Softmax, which subtracts the maximum", "Exp", _softmax),
    Form("difference", "exp(a) / exp(b) as exp(a - b)", "Exp", _difference),
    Form("mean", "a mean whose terms are divided before they are added", "ReduceSum", _mean),
    Form("mean", "a mean whose terms are divided before they are added", "ReduceMean", _mean),
)
"""The forms, in the order in which they are tried."""
