"""The rows of operators, each tried: scaled as its equations allow, a node gives the same bits, scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration.profile import RangeProfile
from demi.calibration.rescaling.forward import FORWARD
from demi.calibration.sessions import session_for
from demi.exporter.rescaling.equations import equations_of
from demi.exporter.rescaling.rescale import AS_WRITTEN
from demi.exporter.rescaling.rules import ROWS
from tests.exporter.rescaling.exponents import any_exponents
from tests.models import prepared

RNG = np.random.default_rng(5)
WEIGHT = ", ".join(f"{x:.4f}" for x in RNG.uniform(0.3, 3, 64))

X, Y, IMAGE = "float[2, 4] x", "float[2, 4] y", "float[1, 2, 4, 4] x"
C4 = "float[4] c = {0.5, -1.5, 2.25, 0.75}, float[4] d = {0.1, 0.2, -0.3, 0.4}"
SQUARE = "float[4, 4] w = {" + ", ".join(WEIGHT.split(", ")[:16]) + "}"
KERNEL = "float[2, 2, 2, 2] w = {" + ", ".join(WEIGHT.split(", ")[:16]) + "}, float[2] b = {0.5, -0.25}"
PAIR = "float[2] c = {0.5, -1.5}, float[2] d = {0.1, 0.2}, float[2] m = {0.3, -0.1}, float[2] v = {1.5, 0.7}"

CASES: dict[str, tuple[str, str, str]] = {
    # operator: inputs, constants, the expression of y
    "Identity": (X, "", "Identity(x)"),
    "Relu": (X, "", "Relu(x)"),
    "LeakyRelu": (X, "", "LeakyRelu<alpha=0.1>(x)"),
    "PRelu": (X, C4, "PRelu(x, c)"),
    "Abs": (X, "", "Abs(x)"),
    "Neg": (X, "", "Neg(x)"),
    "Transpose": (X, "", "Transpose(x)"),
    "Add": (X, C4, "Add(x, c)"),
    "Sub": (X, C4, "Sub(x, c)"),
    "Sum": (X, C4, "Sum(x, c, d)"),
    "Mean": (X, C4, "Mean(x, c, d)"),
    "Max": (X, C4, "Max(x, c, d)"),
    "Min": (X, C4, "Min(x, c)"),
    "Concat": (X, SQUARE, "Concat<axis=0>(x, w)"),
    "Mul": (X, C4, "Mul(x, c)"),
    "MatMul": (X, SQUARE, "MatMul(x, w)"),
    "Einsum": (X, SQUARE, 'Einsum<equation="ij,jk->ki">(x, w)'),
    "Gemm": (X, f"{SQUARE}, {C4}", "Gemm<alpha=0.5>(x, w, c)"),
    "Div": (X, C4, "Div(x, c)"),
    "Reciprocal": (X, "", "Reciprocal(x)"),
    "Sqrt": (X, "", "Sqrt(x)"),
    "ReduceSum": (X, "int64[1] a = {1}", "ReduceSum(x, a)"),
    "ReduceMean": (X, "int64[1] a = {1}", "ReduceMean(x, a)"),
    "ReduceMax": (X, "int64[1] a = {1}", "ReduceMax(x, a)"),
    "ReduceL1": (X, "int64[1] a = {1}", "ReduceL1(x, a)"),
    "ReduceL2": (X, "int64[1] a = {1}", "ReduceL2(x, a)"),
    "ReduceSumSquare": (X, "int64[1] a = {1}", "ReduceSumSquare(x, a)"),
    "Pow": (X, "float p = {3.0}", "Pow(x, p)"),
    "Clip": (X, "float a = {0.5}, float b = {2.0}", "Clip(x, a, b)"),
    "Pad": (X, "int64[4] p = {0, 1, 0, 1}, float f = {0.75}", "Pad(x, p, f)"),
    "CumSum": (X, "int64 a = {1}", "CumSum(x, a)"),
    "Split": (X, "", "Split<axis=1, num_outputs=2>(x)"),
    "Where": (f"{X}, bool[2, 4] when", C4, "Where(when, x, c)"),
    "Gather": (X, "int64[2] i = {1, 0}", "Gather(x, i)"),
    "ScatterND": (X, f"int64[1, 1] i = {{1}}, {C4}, int64[2] s = {{1, 4}}", "ScatterND(x, i, u)"),
    "TopK": (X, "int64[1] k = {2}", "TopK(x, k)"),
    "Conv": (IMAGE, KERNEL, "Conv(x, w, b)"),
    "ConvTranspose": (IMAGE, KERNEL, "ConvTranspose(x, w, b)"),
    "MaxPool": (IMAGE, "", "MaxPool<kernel_shape=[2, 2]>(x)"),
    "AveragePool": (IMAGE, "", "AveragePool<kernel_shape=[2, 2]>(x)"),
    "GlobalAveragePool": (IMAGE, "", "GlobalAveragePool(x)"),
    "Resize": (
        IMAGE,
        "float[4] s = {1.0, 1.0, 2.0, 2.0}, float[8] roi = {0, 0, 0, 0, 1, 1, 1, 1}",
        'Resize<mode="linear">(x, roi, s)',
    ),
    "LayerNormalization": (X, C4, "LayerNormalization<epsilon=0.01>(x, c, d)"),
    "InstanceNormalization": (IMAGE, PAIR, "InstanceNormalization<epsilon=0.01>(x, c, d)"),
    "BatchNormalization": (IMAGE, PAIR, "BatchNormalization<epsilon=0.01>(x, c, d, m, v)"),
    "LpNormalization": (X, "", "LpNormalization(x)"),
    "ArgMax": (X, "", "ArgMax(x)"),
    "Sign": (X, "", "Sign(x)"),
    "Less": (X, C4, "Less(x, c)"),
    "Sigmoid": (X, "", "Sigmoid(x)"),
    "Softmax": (X, "", "Softmax(x)"),
    "Exp": (X, "", "Exp(x)"),
}


@pytest.mark.parametrize("op_type", CASES)
def test_scaled_as_its_equations_allow_it_gives_the_same_bits(op_type: str):
    """Between two factors that may take any exponent, a node's answers are the same for ten random solutions."""
    model = _around(op_type)
    feeds = _feeds(model)
    wanted = _answers(model, feeds)

    for seed in range(10):
        changed = any_exponents(model, np.random.default_rng(seed))
        assert all(wanted[name].tobytes() == got.tobytes() for name, got in _answers(changed, feeds).items())


@pytest.mark.parametrize("op_type", ["Sigmoid", "Softmax", "Exp"])
def test_operator_without_a_row_is_pinned(op_type: str):
    """Its operands' only exponent is 0."""
    model = _around(op_type)
    system = equations_of(model, RangeProfile())
    node = next(node for node in model.graph if node.op_type == op_type)

    assert ("", op_type) not in ROWS
    assert {system.tensors[node.outputs[0]]: 1} in system.equations


def test_the_checker_knows_every_operator_of_the_rows():
    """Each row's operator has a function of the checker's own, which shares no code with it."""
    known = {name if ":" in name else f":{name}" for name in FORWARD}

    assert {f"{domain}:{op}" for domain, op in ROWS} - known <= {":ConstantOfShape"}


def _around(op_type: str) -> ir.Model:
    """A factor before the node and one behind it, through which its operands may take any exponent."""
    inputs, constants, expression = CASES[op_type]
    first, results = "", ["r"]
    if op_type == "ScatterND":
        first = "u = Reshape(c, s)"
    if op_type in ("Split", "TopK"):
        results = ["r", "other"]
    body = expression.replace("(x", "(h", 1)
    if op_type == "Where":
        body = "Where(when, h, c)"
    scaled = op_type in ("ArgMax", "Less")
    last = "y = Cast<to=1>(r)" if scaled else "y = Mul(r, after)"
    text = f"""
    m ({inputs}) => (float[...] y)
    <float before = {{1.25}}, float after = {{0.7}}{", " if constants else ""}{constants}>
    {{
      h = Mul(x, before)
      {first}
      {", ".join(results)} = {body}
      {last}
    }}
    """.replace("float[...] y", "float y")
    return prepared(text)


def _feeds(model: ir.Model) -> dict[str, Any]:
    shapes = {value.name: (value.shape.numpy(), value.dtype) for value in model.graph.inputs}
    return {
        name: RNG.uniform(0.1, 3.0, shape).astype(np.float32)
        if kind is ir.DataType.FLOAT
        else RNG.uniform(0, 1, shape) > 0.5
        for name, (shape, kind) in shapes.items()
    }


def _answers(model: ir.Model, feeds: dict[str, Any]) -> dict[str, Any]:
    with session_for(model, settings=AS_WRITTEN) as session:
        return session.run(feeds)
