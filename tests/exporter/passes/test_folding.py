"""Folding of constants: weights that are moved go, whatever their size, and nothing grows."""

import numpy as np
import onnx_ir as ir
import pytest

from demi.exporter import convert
from demi.exporter.passes.optimize import optimize
from tests.exporter.planning.helpers import floats
from tests.models import prepared, run, text

LARGE = 512
"""Rows of the weights below: a quarter of a million elements, more than onnxscript folds by itself."""


def optimized(source: str, **weights: np.ndarray) -> ir.Model:
    """A model in text, with these weights, after the optimization; its answers are the same."""
    model = prepared(source)
    for name, array in weights.items():
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape))
        value.const_value = ir.tensor(array, name=name)
        next(v for v in model.graph.inputs if v.name == name).replace_all_uses_with(value)
        model.graph.inputs[:] = [v for v in model.graph.inputs if v.name != name]
        model.graph.register_initializer(value)
    feeds = [{"x": floats(2, LARGE)}]
    return optimize(model, feeds, [run(model, feed) for feed in feeds])


def operators(model: ir.Model) -> list[str]:
    """The operators of a model, in order."""
    return [node.op_type for node in model.graph]


def stored(model: ir.Model) -> int:
    """Elements of all float weights."""
    return sum(v.const_value.size for v in model.graph.initializers.values() if v.dtype is ir.DataType.FLOAT)


@pytest.mark.parametrize(
    ("move", "shape"),
    [
        ("v = Transpose <perm = [1, 0]> (w)", (64, LARGE)),
        ("v = Slice(w, zero, many)", (LARGE + 99, 64)),
        ("v = Concat <axis = 0> (w, w2)", (LARGE // 2, 64)),
        ("v = Reshape(w, folded)", (LARGE * 8, 8)),
        ("a = Transpose <perm = [1, 0]> (w) v = Slice(a, zero, many)", (64, LARGE + 99)),
    ],
    ids=["transpose", "slice", "concat", "reshape", "two in a row"],
)
def test_a_weight_that_is_moved(move, shape):
    """One product is left, and its weight is stored once, as it is used."""
    second = ", float[256, 64] w2" if "w2" in move else ""
    source = f"m (float[n, {LARGE}] x, float[{shape[0]}, {shape[1]}] w{second}) => (float[n, 64] y) <int64[1] zero = {{0}}, int64[1] many = {{{LARGE}}}, int64[2] folded = {{{LARGE}, 64}}> {{ {move} y = MatMul(x, v) }}"
    weights = {"w": floats(*shape)} | ({"w2": floats(256, 64, seed=1)} if second else {})

    model = optimized(source, **weights)

    assert ["MatMul"] == operators(model)
    assert LARGE * 64 == stored(model)


def test_two_slices_of_one_weight():
    """A weight that is cut in two is folded: its halves have as many elements."""
    source = f"m (float[n, {LARGE}] x, float[{2 * LARGE}, 64] w) => (float[n, 64] y) <int64[1] zero = {{0}}, int64[1] half = {{{LARGE}}}, int64[1] end = {{{2 * LARGE}}}> {{ a = Slice(w, zero, half) b = Slice(w, half, end) p = MatMul(x, a) q = MatMul(x, b) y = Add(p, q) }}"

    model = optimized(source, w=floats(2 * LARGE, 64))

    assert ["MatMul", "MatMul", "Add"] == operators(model)
    assert 2 * LARGE * 64 == stored(model)


def test_a_weight_that_others_read_as_it_is():
    """A tied weight is not stored twice: the transposition stays."""
    source = f"m (float[n, {LARGE}] x, float[{LARGE}, {LARGE}] w) => (float[n, {LARGE}] y) {{ p = MatMul(x, w) v = Transpose <perm = [1, 0]> (w) y = MatMul(p, v) }}"

    model = optimized(source, w=floats(LARGE, LARGE))

    assert "Transpose" in operators(model)
    assert LARGE * LARGE == stored(model)


def test_what_grows_is_not_folded():
    """A constant that is expanded to more than a million elements stays small."""
    source = f"m (float[n, {LARGE}] x) => (float[4096, {LARGE}] y) <float[1, {LARGE}] row = {{{', '.join(['0.5'] * LARGE)}}}, int64[2] to = {{4096, {LARGE}}}, float one = {{1.0}}> {{ a = Expand(row, to) s = ReduceSum(x) b = Mul(a, s) y = Add(b, one) }}"

    assert "Expand" in operators(optimized(source))


def test_no_weight_in_both_precisions():
    """A converted model whose weight was behind a Slice holds it in half alone."""
    source = f"m (float[n, {LARGE}] x, float[{LARGE + 99}, 64] w) => (float[n, 64] y) <int64[1] zero = {{0}}, int64[1] many = {{{LARGE}}}> {{ v = Slice(w, zero, many) [product] y = MatMul(x, v) }}"
    model = ir.to_proto(optimized(source, w=floats(LARGE + 99, 64) / 8))

    converted = convert(model, [{"x": floats(2, LARGE)}]).model

    floats_left = [tensor.name for tensor in converted.graph.initializer if tensor.data_type == 1]
    assert [] == floats_left, text(ir.from_proto(converted))
