"""Empty inputs, such as the missing past of a decoder's first step or a picture without boxes, are supported."""

import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration.emulation.kernels import spell_out
from demi.calibration.emulation.widen import widen
from demi.calibration.observe import observe
from demi.calibration.samples import Samples
from demi.errors import SampleError
from demi.exporter import convert
from tests.exporter.planning.helpers import floats
from tests.models import in_half, parse, prepared, run

DECODER = """
decoder (int64[batch, t] ids, float[batch, past_len, 4] past)
  => (float[batch, t, 4] answer, float[batch, total_len, 4] present)
<float[3, 4] table = {0.5, -1.0, 0.25, 1.0, 1.5, 0.75, -0.5, 0.1, -0.3, 0.6, 0.9, -1.2}>
{
  [embed] x = Gather(table, ids)
  [keep] present = Concat <axis = 1> (past, x)
  [turn] keys = Transpose <perm = [0, 2, 1]> (present)
  [score] scores = MatMul(x, keys)
  [weigh] weights = Softmax <axis = -1> (scores)
  [mix] answer = MatMul(weights, present)
}
"""
FIRST = {"ids": np.array([[0, 1, 2]]), "past": np.zeros((1, 0, 4), np.float32)}
SECOND = {"ids": np.array([[1]]), "past": floats(1, 3, 4)}

OVER_NONE = {
    "ReduceMean": "<int64[1] axis = {0}> { [it] y = ReduceMean <keepdims = 0> (x, axis) }",
    "ReduceL2": "<int64[1] axis = {0}> { [it] y = ReduceL2 <keepdims = 0> (x, axis) }",
    "ReduceSumSquare": "<int64[1] axis = {0}> { [it] y = ReduceSumSquare <keepdims = 0> (x, axis) }",
    "ReduceLogSumExp": "<int64[1] axis = {0}> { [it] y = ReduceLogSumExp <keepdims = 0> (x, axis) }",
    "CumSum": "<int64 axis = {0}> { [it] y = CumSum(x, axis) }",
    "CumSum of others": "<int64 axis = {1}> { [it] y = CumSum(x, axis) }",
    "CumSum backwards": "<int64 axis = {0}> { [it] y = CumSum <reverse = 1, exclusive = 1> (x, axis) }",
}
"""Reductions over an empty axis, and beside one."""


def reduction(name):
    """The model of a reduction over any number of rows."""
    rank = "[?, 4]" if "CumSum" in name else "[4]"
    return f'<ir_version: 8, opset_import: ["" : 18]> m (float[n, 4] x) => (float{rank} y) {OVER_NONE[name]}'


@pytest.mark.parametrize("sets", [[FIRST], [FIRST, SECOND], [SECOND, FIRST]], ids=["alone", "first", "second"])
def test_a_decoder_without_a_past(sets):
    """Samples with an empty cache are measured like all others."""
    converted = convert(ir.to_proto(parse(DECODER)), sets)

    assert converted.comparison
    assert converted.plan.half_nodes
    assert [sum(feeds["ids"].size for feeds in sets) * 4] == [converted.comparison.outputs[0].elements]


def test_no_boxes():
    """A set whose inputs and outputs are all empty is accepted beside others."""
    source = "boxes (float[n, 4] x) => (float[n, 4] y) { [it] y = Sigmoid(x) }"

    converted = convert(ir.to_proto(parse(source)), [{"x": floats(0, 4)}, {"x": floats(5, 4)}])

    assert 20 == converted.comparison.outputs[0].elements
    assert 1.0 == converted.comparison.outputs[0].top1


def test_nothing_at_all():
    """Sets without a single element are an error."""
    source = "boxes (float[n, 4] x) => (float[n, 4] y) { [it] y = Sigmoid(x) }"

    with pytest.raises(SampleError, match="all inputs are empty"):
        convert(ir.to_proto(parse(source)), [{"x": floats(0, 4)}])


def test_an_empty_tensor_has_no_range():
    """The range of an empty tensor is unknown, not [0, 0]."""
    model = prepared(DECODER)

    alone, both = (observe(model, Samples(sets, "here")) for sets in ((FIRST,), (FIRST, SECOND)))

    assert alone.get("past") is None
    assert floats(1, 3, 4).max() == pytest.approx(both["past"].high)


@pytest.mark.parametrize("name", OVER_NONE)
def test_a_reduction_spelled_out(name):
    """The decomposed reduction agrees with the operator, on no rows and on some."""
    model = prepared(reduction(name))
    spelled = spell_out(model.clone(), lambda node: True)

    for rows in (0, 5):
        feeds = {"x": floats(rows, 4)}
        np.testing.assert_allclose(run(model, feeds)["y"], run(spelled, feeds)["y"], rtol=1e-6)


@pytest.mark.parametrize("name", OVER_NONE)
def test_a_reduction_under_the_emulator(name):
    """An empty tensor may be half."""
    model, half = prepared(reduction(name)), prepared(in_half(reduction(name)))

    want = run(model, {"x": floats(0, 4)})["y"]

    np.testing.assert_array_equal(want, run(widen(half), {"x": np.zeros((0, 4), np.float16)})["y"])
