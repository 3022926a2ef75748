"""Fusion of hard swish, x clip(x + 3, 0, 6) / 6, from primitives.

Written out, it adds 3 to its argument and stores the sum, in which half loses the digits of an argument near -3. The
rules are onnxscript's, with the forms that it lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern
from onnxscript.rewriter._ir_utils import is_singleton_value
from onnxscript.rewriter.rules.common import _fuse_hardswish

OPSET_HARD_SWISH = 14

BOUNDS = {"clip_min": 0.0, "clip_max": 6.0, "bias": 3.0}


def hard_swish_rules(opset: int) -> list[Any]:
    """Return the rules that make HardSwish, or before opset 14 the argument times its HardSigmoid."""
    made = _swish if opset >= OPSET_HARD_SWISH else _gated
    gate: Any = _fuse_hardswish.HardSigmoidFusion
    rules = [_rule(_divided, 6.0, made), _rule(_scaled, 1 / 6, made), gate().rule()]
    if opset >= OPSET_HARD_SWISH:
        swish: Any = _fuse_hardswish.HardSwishFusionFromHardSigmoid
        rules.append(swish().rule())
    return list(pattern.RewriteRuleSet(rules, commute=True).rules)


def _rule(matched: Callable[..., Any], scale: float, made: Callable[..., Any]) -> Any:
    """Return the rule for one form, whose last constant is `scale`."""

    def check(context: Any, **bound: ir.Value) -> Any:
        wanted = BOUNDS | {"scale": scale}
        wrong = [name for name, number in wanted.items() if not is_singleton_value(bound[name], number, rtol=1e-4)]
        return not wrong

    return pattern.RewriteRule(matched, made, check)


def _divided(op: Any, x: Any, clip_min: Any, clip_max: Any, bias: Any, scale: Any) -> Any:
    return op.Div(op.Mul(op.Clip(op.Add(x, bias), clip_min, clip_max), x), scale)


def _scaled(op: Any, x: Any, clip_min: Any, clip_max: Any, bias: Any, scale: Any) -> Any:
    return op.Mul(op.Mul(op.Clip(op.Add(x, bias), clip_min, clip_max), x), scale)


def _swish(op: Any, x: ir.Value, **_: Any) -> Any:
    return op.HardSwish(x)


def _gated(op: Any, x: ir.Value, **_: Any) -> Any:
    return op.Mul(x, op.HardSigmoid(x, alpha=1 / 6, beta=0.5))
