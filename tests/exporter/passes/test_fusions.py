"""Operators put together from primitives: where the opset has them, where nothing is lost, and to the same answers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.calibration.sessions import session_for
from demi.exporter.api import convert
from demi.exporter.passes.optimize import optimize
from demi.exporter.passes.prepare import prepare
from demi.plan import Reason
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds

CONSTANTS = """<float half = {0.5}, float one = {1.0}, float root = {1.41421356}, float inverse = {0.70710678},
 float a = {0.044715}, float b = {0.79788456}, float three = {3.0}>"""

ERF = "d = Div(x, root) e = Erf(d) g = Add(e, one)"
ERF_MUL = "d = Mul(inverse, x) e = Erf(d) g = Add(one, e)"
TANH = "c = Pow(x, three) m = Mul(c, a) s = Add(x, m) t = Mul(s, b) e = Tanh(t) g = Add(e, one)"
CUBE = "q = Mul(x, x) c = Mul(x, q) m = Mul(a, c) s = Add(m, x) t = Mul(b, s) e = Tanh(t) g = Add(one, e)"

HALF_FIRST = "h = Mul(x, half) y = Mul(h, g)"
HALF_LAST = "h = Mul(x, g) y = Mul(h, half)"
HALF_GATE = "h = Mul(half, g) y = Mul(h, x)"


def gelu(gate: str, product: str, opset: int = 20, constants: str = CONSTANTS) -> str:
    """A Gelu in primitives."""
    return f'<ir_version: 9, opset_import: ["" : {opset}]> m (float[n, 8] x) => (float[n, 8] y) {constants} {{ {gate} {product} }}'


def attention(body: str, opset: int = 23, inputs: str = "") -> str:
    """Attention in primitives, over two heads of four elements."""
    return f"""<ir_version: 10, opset_import: ["" : {opset}]>
    m (float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 4] v{inputs}) => (float[1, 2, 3, 4] y)
    <float scale = {{0.25}}, float nought = {{0.0}}> {{ t = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, t) {body} }}"""


SCALED = "z = Mul(s, scale) w = Softmax <axis = -1> (z) y = MatMul(w, v)"
MASKED = "z = Mul(s, scale) a = Add(z, mask) w = Softmax <axis = -1> (a) y = MatMul(w, v)"
GUARDED = "z = Mul(s, scale) a = Add(z, mask) p = Softmax <axis = -1> (a) bad = IsNaN(p) w = Where(bad, nought, p) y = MatMul(w, v)"
MASK = ", float[1, 1, 3, 5] mask"


def feeds_for(model: ir.Model) -> Feeds:
    """Normal numbers."""
    rng = np.random.default_rng(0)
    shapes = {
        value.name or "": [dim if isinstance(dim, int) else 2 for dim in value.shape or ()]
        for value in model.graph.inputs
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def optimized_ops(text: str) -> list[str]:
    """The operators of the optimized model; its answers were compared on the way."""
    model = prepare(ir.from_onnx_text(text))
    feeds = feeds_for(model)
    with session_for(model, settings=FAITHFUL) as session:
        references = [session.run(feeds)]
    return [node.op_type for node in optimize(model, [feeds], references).graph]


@pytest.mark.parametrize(
    "gate", [ERF, ERF_MUL, TANH, CUBE], ids=["erf", "erf of a product", "tanh", "cube by products"]
)
@pytest.mark.parametrize("product", [HALF_FIRST, HALF_LAST, HALF_GATE], ids=["first", "last", "gate"])
def test_gelu_is_found_in_every_form(gate: str, product: str):
    """With erf or tanh, in any order of the factors."""
    assert ["Gelu"] == optimized_ops(gelu(gate, product))


def test_the_opset_is_not_raised_for_it():
    """Before opset 20 ONNX has no Gelu: the primitives stay."""
    assert "Gelu" not in optimized_ops(gelu(ERF, HALF_FIRST, opset=19))


@pytest.mark.parametrize(("constant", "other"), [("0.044715", "0.05"), ("1.41421356", "1.5"), ("{0.5}", "{0.25}")])
def test_another_function_is_no_gelu(constant: str, other: str):
    """A constant that is another makes another function."""
    gate = TANH if constant == "0.044715" else ERF

    assert "Gelu" not in optimized_ops(gelu(gate, HALF_FIRST, constants=CONSTANTS.replace(constant, other)))


@pytest.mark.parametrize(("body", "inputs"), [(SCALED, ""), (MASKED, MASK)], ids=["plain", "masked"])
def test_attention_is_found(body: str, inputs: str):
    """Two products, a scale, a mask and a softmax become one operator."""
    assert ["Attention"] == optimized_ops(attention(body, inputs=inputs))


def test_guarded_attention_stays_in_primitives():
    """The primitives turn fully masked rows into zeros; the operator would return NaN."""
    assert "Attention" not in optimized_ops(attention(GUARDED, inputs=MASK))


def test_attention_needs_its_opset():
    """Before opset 23 there is none, and the opset is not raised for it."""
    assert "Attention" not in optimized_ops(attention(SCALED, opset=22))


def converted(
    text: str, optimize: bool = True, scale: float = 1.0, forced: str = ""
) -> tuple[onnx.ModelProto, list[str], object]:
    """The mixed model, its operators, and its plan."""
    model = ir.to_proto(ir.from_onnx_text(text))
    feeds = {name: scale * array for name, array in feeds_for(ir.from_proto(model)).items()}
    done = convert(model, [feeds], optimize=optimize, force_half=[forced] if forced else ())
    return done.model, [node.op_type for node in done.model.graph.node], done.plan


def test_fused_attention_is_half_with_its_softmax_in_single():
    """The operator's inputs are half; it says that its softmax is not."""
    model, ops, _ = converted(attention(SCALED), forced="Attention")

    (node,) = (each for each in model.graph.node if each.op_type == "Attention")
    assert 3 == ops.count("Cast") - 1
    assert [1] == [attribute.i for attribute in node.attribute if attribute.name == "softmax_precision"]


def test_scores_that_may_leave_half_keep_attention_single():
    """The scores are not observed: the largest query and key bound them."""
    _, _, plan = converted(attention(SCALED), scale=300.0)

    (decision,) = (each for each in plan.decisions.values() if each.op_type == "Attention")  # type: ignore[attr-defined]
    assert Reason.REDUCTION is decision.reason
    assert decision.evidence.startswith("its scores may reach ")


@pytest.mark.parametrize("text", [gelu(ERF, HALF_FIRST), attention(SCALED)], ids=["gelu", "attention"])
def test_no_optimize_turns_it_off(text: str):
    """Nothing is put together when it is not wanted."""
    _, ops, _ = converted(text, optimize=False)

    assert not {"Gelu", "Attention"} & set(ops)
