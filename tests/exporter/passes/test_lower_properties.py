"""Lowering, for any graph and any plan: the result is valid, and a plan without half changes no bit."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demi.calibration.emulation.widen import rounding_casts, widen
from demi.calibration.sessions import session_for
from demi.exporter.operators.schemas import half_dtype, half_operands, opset_version, touches_float
from demi.exporter.passes.lower import apply_plan
from demi.exporter.planning.op_list import op_list_plan
from demi.float16 import BF16, FORMATS, FP16
from demi.plan import Decision, Precision, Reason, make_plan
from tests.models import check, prepared, run

UNARY = [
    "Neg({a})",
    "Abs({a})",
    "Relu({a})",
    "Exp({a})",
    "Sigmoid({a})",
    "Softmax({a})",
    "Identity({a})",
    "Transpose <perm = [0, 1]> ({a})",
]
BINARY = ["Add({a}, {b})", "Sub({a}, {b})", "Mul({a}, {b})", "Max({a}, {b})"]
WEIGHTED = [
    "Mul({a}, gain)",
    "Add({a}, row)",
    "MatMul({a}, square)",
    "Sub({a}, mean{n})",
    "Pow({a}, gain)",
    "Clip({a}, , gain)",
    "Expand({a}, ones)",
]
TYPED = ["Cast <to = 1> ({i})", "Where({c}, {a}, {b})", "LayerNormalization({a}, row)"]
BRANCH = """If (flag) <
    then_branch = then{n} () => (float[n, 3] t{n}) {{ [in_then{n}] s{n} = Mul({a}, gain) [out_then{n}] t{n} = Add(s{n}, {b}) }},
    else_branch = else{n} () => (float[n, 3] e{n}) {{ [out_else{n}] e{n} = MatMul({b}, square) }}
  >"""
WEIGHTS = "<float gain = {1.5}, float[3] row = {0.5, -1.0, 2.0}, float[3, 3] square = {1.0, 2.0, 3.0, 0.1, 0.2, 0.3, -1.0, 0.0, 1.0}, int64[1] last = {-1}, int64[2] ones = {1, 1}>"
FEEDS = {
    "x": np.float32([[0.5, -1.25, 3.1], [7.0, 0.01, -0.3]]),
    "ids": np.array([[1, 2, 3], [4, 5, 6]]),
    "flag": np.array(True),
}


@st.composite
def graphs(draw):
    """The text of a small model: any operators, any wiring, any of its values as outputs, subgraphs among them."""
    values, body = ["x"], ["  [compare] mask = Greater(x, gain)"]
    for index in range(draw(st.integers(1, 7))):
        form = draw(st.sampled_from([*UNARY, *BINARY, *WEIGHTED, *TYPED, BRANCH]))
        a, b = (draw(st.sampled_from(values)) for _ in range(2))
        if "mean" in form:
            body.append(f"  [mean{index}] mean{index} = ReduceMean <keepdims = 1> ({a}, last)")
        body.append(f"  [node{index}] v{index} = " + form.format(a=a, b=b, c="mask", i="ids", n=index))
        values.append(f"v{index}")
    outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
    public = ", ".join(f"float[n, 3] {name}" for name in outputs)
    return (
        f"random (float[n, 3] x, int64[n, 3] ids, bool flag) => ({public})\n{WEIGHTS}\n{{\n" + "\n".join(body) + "\n}"
    )


def random_plan(model, fmt, choose):
    """Make a node half where `choose()` returns True and the schema allows it."""
    half = half_dtype(fmt)
    return make_plan(
        fmt.name,
        [
            Decision(
                each.name,
                each.op_type,
                Precision.HALF
                if half_operands(each, opset_version(each, model), half) and choose()
                else Precision.SINGLE,
                Reason.SAFE,
            )
            for each in model.graph.all_nodes()
            if touches_float(each)
        ],
    )


relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
formats = st.sampled_from([FP16, BF16])


def answers(model, feeds):
    """The outputs of a model, whose float inputs may be half."""
    types = {value.name: value.dtype.numpy() for value in model.graph.inputs}
    return run(model, {name: feeds[name].astype(types[name]) for name in types})


@relaxed
@given(graphs(), formats, st.booleans(), st.data())
def test_any_plan_gives_a_valid_model(text, fmt, half_io, data):
    """The checker passes it, ONNX Runtime loads it, the emulator runs it, and it looks the same from outside."""
    model = prepared(text)
    lowered = apply_plan(model, random_plan(model, fmt, lambda: data.draw(st.booleans())), half_io=half_io).model

    check(lowered)
    assert [value.name for value in model.graph.inputs] == [value.name for value in lowered.graph.inputs]
    assert [value.name for value in model.graph.outputs] == [value.name for value in lowered.graph.outputs]
    if fmt is FP16:
        with session_for(lowered):
            pass
        before, after = run(model, FEEDS), answers(widen(lowered), FEEDS)
        assert {name: array.shape for name, array in before.items()} == {
            name: array.shape for name, array in after.items()
        }


@relaxed
@given(graphs(), formats)
def test_single_plan_changes_no_bit(text, fmt):
    """A plan without half, lowered and emulated, answers bit for bit as the prepared model does."""
    model = prepared(text)
    lowered = apply_plan(model, random_plan(model, fmt, lambda: False))
    widened = widen(lowered.model)

    assert (0, 0) == (lowered.casts, rounding_casts(widened))
    before, after = run(model, FEEDS), run(widened, FEEDS)
    for name in before:
        np.testing.assert_array_equal(before[name].view(np.uint32), after[name].view(np.uint32))


@relaxed
@given(graphs(), st.data())
def test_a_tensor_is_cast_once_in_each_direction(text, data):
    """No two of the casts that a plan adds cast one tensor to one type."""
    model = prepared(text)
    old = {each.name for each in model.graph.all_nodes()}
    lowered = apply_plan(model, random_plan(model, FP16, lambda: data.draw(st.booleans()))).model
    added = [
        (each.inputs[0].name, each.attributes["to"].as_int())
        for each in lowered.graph.all_nodes()
        if each.op_type == "Cast" and each.name not in old
    ]

    assert sorted(set(added)) == sorted(added)


@relaxed
@given(graphs(), st.sampled_from(list(FORMATS)))
def test_op_list_plan_can_be_carried_out(text, precision):
    """For any graph, the op-level plan can be applied."""
    model = prepared(text)
    lowered = apply_plan(model, op_list_plan(model, FORMATS[precision])).model

    check(lowered)
    assert {name: array.shape for name, array in run(model, FEEDS).items()} == {
        name: array.shape for name, array in run(widen(lowered), FEEDS).items()
    }
