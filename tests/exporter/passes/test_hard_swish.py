"""Hard swish, put together from primitives: in every form, as one operator where the opset has it."""

from __future__ import annotations

import pytest

from tests.exporter.passes.test_fusions import converted, optimized_ops

CLIPPED = "p = Add(x, three) c = Clip(p, nought, six)"
FORMS = {
    "divided last": f"{CLIPPED} m = Mul(x, c) y = Div(m, six)",
    "scaled last": f"{CLIPPED} m = Mul(c, x) y = Mul(m, sixth)",
    "divided gate": f"{CLIPPED} g = Div(c, six) y = Mul(x, g)",
    "gate": "g = HardSigmoid <alpha = 0.1666667, beta = 0.5> (x) y = Mul(g, x)",
}
forms = pytest.mark.parametrize("body", FORMS.values(), ids=FORMS.keys())


def swish(body: str, opset: int, six: str = "6.0") -> str:
    """Return a model of a hard swish in primitives."""
    return f"""<ir_version: 7, opset_import: ["" : {opset}]> m (float[n, 8] x) => (float[n, 8] y)
    <float three = {{3.0}}, float nought = {{0.0}}, float six = {{{six}}}, float sixth = {{0.16666667}}> {{ {body} }}"""


@forms
def test_hard_swish_is_found(body: str):
    """With the product before or after the division, in either order."""
    assert ["HardSwish"] == optimized_ops(swish(body, opset=14))


@forms
def test_before_opset_14_it_is_a_gate_and_a_product(body: str):
    """HardSwish does not exist there, but HardSigmoid does: no sum of 3 and the argument is stored."""
    assert ["HardSigmoid", "Mul"] == optimized_ops(swish(body, opset=13))


@pytest.mark.parametrize("body", [FORMS["divided last"], FORMS["scaled last"]], ids=["divided", "scaled"])
def test_other_bounds_are_another_function(body: str):
    """A clip at 5 is no hard swish."""
    assert "HardSwish" not in optimized_ops(swish(body, opset=14, six="5.0"))


def test_a_fused_hard_swish_is_half():
    """Its one operator converts, and its answers stay within the budget."""
    _, ops, _ = converted(swish(FORMS["divided last"], opset=14), forced="HardSwish")

    assert ["Cast", "HardSwish", "Cast"] == ops
