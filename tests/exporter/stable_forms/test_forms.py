"""Stable forms: the same function, no overflow on the way, and kept only where that spares nodes in FP32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.exporter.conversion import InRange, brought_into_range
from demi.exporter.planning.plan_settings import PlanSettings
from demi.runtime.options import FAITHFUL
from tests.models import prepared

WIDE = np.linspace(-30, 30, 64, dtype=np.float32).reshape(4, 16)

SOFTPLUS = """
m (float[n, 16] x) => (float[n, 16] y)
<float one = {1.0}>
{ [exp] e = Exp(x)  [one] s = Add(ORDER)  [log] y = Log(s) }
"""

MISH = """
m (float[n, 16] x) => (float[n, 16] y)
<float two = {2.0}>
{ [exp] e = Exp(x)  [plus] p = Add(e, two)  [n] n1 = Mul(e, p)  [below] b = Add(n1, two) [times] t = Mul(x, n1)  [by] y = Div(t, b) }
"""

MISH_QUOTIENT = """
m (float[n, 16] x) => (float[n, 16] y)
<float two = {2.0}>
{ [exp] e = Exp(x)  [plus] p = Add(two, e)  [n] n1 = Mul(p, e)  [below] b = Add(n1, two) [by] q = Div(n1, b) [times] y = Mul(q, x) }
"""

LOG_SUM_EXP = """
m (float[n, 16] x) => (float[n, SIZE] y)
<int64[1] axes = {-1}>
{ [exp] e = Exp(x)  [sum] s = ReduceSum<keepdims=KEEP>(e, axes)  [log] l = Log(s) [out] y = LAST }
"""

SOFTMAX = """
m (float[n, 16] x) => (float[n, 16] y)
<int64[1] axes = {-1}>
{ [exp] e = Exp(x)  [sum] s = ReduceSum(e, axes)  [by] y = Div(e, s) }
"""

DIFFERENCE = """
m (float[n, 16] x) => (float[n, 16] y)
<int64[1] axes = {-1}>
{ [largest] m = ReduceMax(x, axes) [above] a = Exp(x)  [below] b = Exp(m)  [by] y = Div(a, b) }
"""

EXPRESSIONS = {
    "softplus": SOFTPLUS.replace("ORDER", "e, one"),
    "softplus, the other way round": SOFTPLUS.replace("ORDER", "one, e"),
    "mish": MISH,
    "mish, the quotient first": MISH_QUOTIENT,
    "logsumexp": LOG_SUM_EXP.replace("SIZE", "1").replace("KEEP", "1").replace("LAST", "Identity(l)"),
    "logsumexp, axes dropped": LOG_SUM_EXP.replace("[n, SIZE]", "[n]").replace("KEEP", "0").replace("LAST", "Tanh(l)"),
    "softmax": SOFTMAX,
    "difference": DIFFERENCE,
}


def in_range(source: str, **settings: Any) -> tuple[InRange, ir.Model]:
    """The model of a source, brought into range on wide inputs."""
    model = prepared(source)
    return brought_into_range(model, Samples(({"x": WIDE},), "the test"), PlanSettings(**settings)), model


def answer(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """Its FP32 output."""
    with session_for(model, settings=FAITHFUL) as session:
        (found,) = session.run({"x": x}).values()
    return found


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_nothing_overflows_afterwards(name: str):
    """The overflowing nodes are gone, the record says which form it is, and how far FP32 answers moved."""
    found, model = in_range(EXPRESSIONS[name])

    assert [name.partition(",")[0]] == [form.form for form in found.forms]
    (form,) = found.forms
    assert not found.rescaling.islands
    assert form.removed > 0
    assert 0 <= form.difference < 1e-6
    assert set(form.nodes) <= {node.name for node in found.model.graph}
    assert "safe, not exact" in str(form)
    np.testing.assert_allclose(answer(found.model, WIDE), answer(model, WIDE), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_inputs_at_the_edges(name: str):
    """Where FP32 answers are finite they stay, and a row of minus infinities, as a mask makes it, has the same answer."""
    found, model = in_range(EXPRESSIONS[name])
    x = np.stack([np.full(16, -np.inf), np.full(16, -80.0), np.full(16, 85.0), np.r_[-np.inf, np.zeros(15)]])
    x = x.astype(np.float32)
    with np.errstate(all="ignore"):
        before, after = answer(model, x), answer(found.model, x)

    known = np.isfinite(before)
    np.testing.assert_allclose(after[known], before[known], rtol=1e-4, atol=1e-6)
    assert np.array_equal(np.isneginf(before), np.isneginf(after) & np.isneginf(before))


def test_a_mean_is_divided_before_it_is_added():
    """Thirty thousand threes have a sum beyond half, and what they come from and go to keeps its scale."""
    source = """
    m (float[n, 30000] x) => (float[n, 1] y)
    <int64[1] axes = {-1}, float three = {3.0}>
    { [bound] s = Sigmoid(x) [by] t = Mul(s, three) [pin] u = Softplus(t) [mean] a = ReduceMean(u, axes) [act] y = Sigmoid(a) }
    """
    model = prepared(source)
    samples = Samples(({"x": np.full((1, 30000), 3.0, np.float32)},), "the test")

    found = brought_into_range(model, samples, PlanSettings())

    assert ["mean"] == [form.form for form in found.forms]
    assert not found.rescaling.islands
    assert "ReduceMean" not in {node.op_type for node in found.model.graph}


def test_scores_that_are_scaled_late_need_no_form():
    """A division by sqrt(96) behind the product is repaired exactly: a power of two moves from the weights to it."""
    source = """
    m (float[n, 96] x) => (float[n, n] y)
    <float[96, 96] wq = {NUMBERS}, float[96, 96] wk = {NUMBERS}, float root = {9.797959}>
    { [q] q = MatMul(x, wq) [k] k = MatMul(x, wk) [turn] t = Transpose<perm=[1, 0]>(k) [scores] s = MatMul(q, t) [by] z = Div(s, root) [soft] y = Softmax(z) }
    """
    rng = np.random.default_rng(0)
    model = prepared(source.replace("NUMBERS", ", ".join(f"{v:.4f}" for v in rng.normal(0, 1, 96 * 96))))
    feeds = {"x": rng.normal(0, 3, (4, 96)).astype(np.float32)}

    found = brought_into_range(model, Samples((feeds,), "the test"), PlanSettings())

    assert found.rescaling.certificate is not None
    assert (True, 0) == (found.rescaling.certificate.before.nodes > 0, found.rescaling.certificate.after.nodes)
    assert () == found.forms


class TestLeftAlone:
    """Expressions that stay as they are."""

    def test_where_it_fits(self):
        """No node leaves half's range: nothing is rewritten."""
        model = prepared(EXPRESSIONS["softplus"])
        found = brought_into_range(model, Samples(({"x": WIDE / 10},), "the test"), PlanSettings())

        assert ((), model) == (found.forms, found.model)

    def test_without_rescaling(self):
        """--no-rescale keeps the graph as it is."""
        found, model = in_range(EXPRESSIONS["softplus"], rescale=False)

        assert ((), model) == (found.forms, found.model)

    def test_where_no_node_is_spared(self):
        """The exponential is an output, too, and must be computed: nothing would be gained."""
        source = EXPRESSIONS["softplus"].replace("(float[n, 16] y)", "(float[n, 16] y, float[n, 16] e)")
        model = prepared(source)
        found = brought_into_range(model, Samples(({"x": WIDE},), "the test"), PlanSettings())

        assert () == found.forms

    def test_what_is_not_the_expression(self):
        """log(3 + exp(x)) is no softplus."""
        found, _ = in_range(EXPRESSIONS["softplus"].replace("{1.0}", "{3.0}"))

        assert () == found.forms
        assert found.rescaling.islands

    def test_the_given_model_is_not_changed(self):
        """Forms are written into copies."""
        found, model = in_range(EXPRESSIONS["softplus"])

        assert found.forms
        assert ["Exp", "Add", "Log"] == [node.op_type for node in model.graph]
