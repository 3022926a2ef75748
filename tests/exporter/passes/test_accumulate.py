"""FP32 accumulation: casts around every half product, and nothing else changes."""

import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration.emulation.widen import widen
from demi.exporter.passes.accumulate import accumulate_in_single
from tests.models import BRANCHES, MLP, check, in_half, node, ops, prepared, run

GEMM = """
gemm (float[n, 2] x) => (float[n, 2] y)
<float[2, 2] w = {1.0, 2.0, 3.0, 4.0}, float[2] b = {0.5, -0.5}>
{ [product] y = Gemm(x, w, b) }
"""
HIDDEN = """
hidden (float16[batch, 4] x, float[batch, 4] z) => (float16[batch, 4] y, float[batch, 4] s)
{ [half] y = MatMul(x, x)
  [single] s = MatMul(z, z) }
"""


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_products_compute_in_single_between_casts(half):
    """Both products of a half MLP read and write half, and multiply in FP32."""
    model = prepared(in_half(MLP, half))
    assert 2 == accumulate_in_single(model)

    check(model)
    kind = ir.DataType.FLOAT16 if half == "float16" else ir.DataType.BFLOAT16
    assert ["Cast", "Cast", "MatMul", "Cast", "Add", "Relu", "Cast", "Cast", "MatMul", "Cast"] == ops(model)
    assert ir.DataType.FLOAT is node(model, "first").outputs[0].dtype
    assert kind is node(model, "bias").inputs[0].dtype
    assert ("y", kind) == (model.graph.outputs[0].name, model.graph.outputs[0].dtype)


@pytest.mark.parametrize("source", [MLP, GEMM])
def test_answers_are_those_of_half_storage(source):
    """Sums in FP32 of half values, rounded once at the end: what the emulator says of the model as it was."""
    before, after = prepared(in_half(source)), prepared(in_half(source))
    accumulate_in_single(after)
    x = np.random.default_rng(0).random((3, before.graph.inputs[0].shape[1]), np.float32).astype(np.float16)

    np.testing.assert_array_equal(run(widen(before), {"x": x})["y"], run(widen(after), {"x": x})["y"])


def test_products_in_single_are_left_alone():
    """Only half products are surrounded."""
    model = prepared(HIDDEN)

    assert 1 == accumulate_in_single(model)
    assert ["MatMul"] == [each.op_type for each in model.graph.all_nodes() if each.name == "single"]
    check(model)


def test_models_without_products():
    """There, nothing happens."""
    model = prepared(in_half(BRANCHES))
    before = ops(model)

    assert (0, before) == (accumulate_in_single(model), ops(model))
