"""Rewriting before planning: what pays in half, kept only when the outputs agree."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.calibration.sessions import session_for
from demi.exporter import convert
from demi.exporter.passes import optimize as module
from demi.exporter.passes.optimize import optimize
from demi.exporter.passes.prepare import prepare
from demi.exporter.passes.proof import SAME, same_within
from demi.runtime.options import FAITHFUL

LAYER_NORM = """<ir_version: 9, opset_import: ["" : 18]>
norm (float[n,4] x) => (float[n,4] y)
<int64[1] axes = {-1}, float two = {2}, float eps = {1e-5}, float[4] scale = {1, 2, 3, 4}, float[4] bias = {4, 3, 2, 1}>
{
  mean = ReduceMean(x, axes) d = Sub(x, mean) square = Pow(d, two) variance = ReduceMean(square, axes)
  guarded = Add(variance, eps) root = Sqrt(guarded) n = Div(d, root) scaled = Mul(n, scale) y = Add(scaled, bias)
}"""

FEEDS = [{"x": np.random.default_rng(0).normal(0, 400, (3, 4)).astype(np.float32)}]


def prepared_with_references(text: str) -> tuple[ir.Model, list[dict[str, np.ndarray]]]:
    """A prepared model and its outputs on FEEDS."""
    model = prepare(ir.from_onnx_text(text))
    with session_for(model, settings=FAITHFUL) as session:
        return model, [session.run(feeds) for feeds in FEEDS]


def test_layer_normalization_in_primitives_is_fused():
    """Nine primitives become one LayerNormalization under the same public name."""
    model, references = prepared_with_references(LAYER_NORM)

    optimized = optimize(model, FEEDS, references)

    assert ["LayerNormalization"] == [node.op_type for node in optimized.graph]
    assert "y" == optimized.graph.outputs[0].name
    assert 9 == len(model.graph)


def test_no_ops_and_constants_go():
    """A product with one and arithmetic on constants leave nothing behind."""
    text = """<ir_version: 9, opset_import: ["" : 18]> plain (float[n,4] x) => (float[n,4] y)
    <float one = {1}, float[4] a = {1, 2, 3, 4}> { b = Mul(a, a) p = Mul(x, one) y = Add(p, b) }"""
    model, references = prepared_with_references(text)

    assert ["Add"] == [node.op_type for node in optimize(model, FEEDS, references).graph]


def test_a_graph_that_cannot_be_improved_needs_no_proof():
    """With no node changed, the model itself is returned."""
    model, references = prepared_with_references(
        '<ir_version: 9, opset_import: ["" : 18]> plain (float[n,4] x) => (float[n,4] y) { y = Softmax(x) }'
    )

    assert optimize(model, FEEDS, references) is model


def test_rewriting_that_changes_outputs_is_dropped():
    """References that the rewritten model does not meet leave the model as it was."""
    model, references = prepared_with_references(LAYER_NORM)
    wrong = [{"y": reference["y"] + 1} for reference in references]

    assert optimize(model, FEEDS, wrong) is model


@pytest.mark.parametrize(("limit", "expected"), [(0.01, 5e-5), (1e-4, SAME)], ids=["default", "tight"])
def test_rewritings_may_use_a_small_share_of_the_budget(limit: float, expected: float):
    """The tightest output decides; orders of summation may always differ."""
    budget = Budget(Limits(relative_l2=0.5), outputs={"y": Limits(relative_l2=limit)})

    assert pytest.approx(expected) == same_within(budget, ["x", "y"])


def test_large_models_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    """Nothing is read for rewriting when the weights are beyond the limit."""
    model, references = prepared_with_references(LAYER_NORM)
    monkeypatch.setattr(module, "TOO_LARGE", 8)

    assert optimize(model, FEEDS, references) is model


def test_convert_optimizes_by_default():
    """The fused normalization is half; without optimization its primitives over large values are planned one by one."""
    proto = ir.to_proto(ir.from_onnx_text(LAYER_NORM))

    assert ["LayerNormalization"] == [d.op_type for d in convert(proto, FEEDS).plan.decisions.values()]
    assert 9 == len(convert(proto, FEEDS, optimize=False, rescale=False).plan.decisions)
