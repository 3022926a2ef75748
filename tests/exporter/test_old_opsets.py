"""Models of every opset from 7 on, in both halves: measured, valid, and no worse than in a newer one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.errors import ConversionError
from demi.exporter import convert
from demi.exporter.passes.prepare import prepare
from demi.exporter.passes.upgrade import check_measurable

RANDOM = np.random.default_rng(0)
SCAN = """<ir_version: 8, opset_import: ["" : 8]>
sums (float[1, 3, 4] x, float[1, 4] s) => (float[1, 4] last, float[1, 3, 4] y)
{ last, y = Scan <num_scan_inputs = 1, body = step (float[4] before, float[4] e) => (float[4] after, float[4] o)
    { after = Add(before, e) o = Exp(after) }> ("", s, x) }"""
"""Scan had a batch axis in opset 8, and no converter knows how to do without."""


def weights(*shape):
    """Small random numbers."""
    return (RANDOM.standard_normal(shape) * 0.3).astype(np.float32)


def mlp(opset):
    """Two products."""
    node = onnx.helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Add", ["a", "b"], ["c"]),
        node("Relu", ["c"], ["d"]),
        node("MatMul", ["d", "v"], ["y"]),
    ]
    return nodes, {"w": weights(16, 32), "b": weights(32), "v": weights(32, 8)}, (4, 16), (4, 8)


def cnn(opset):
    """A convolution, a pooling and a classifier."""
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        node("Relu", ["a"], ["b"]),
        node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["c"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "v", "c0"], ["z"]),
        node("Softmax", ["z"], ["y"], axis=1),
    ]
    return nodes, {"w": weights(6, 3, 3, 3), "v": weights(6, 5), "c0": weights(5)}, (3, 3, 8, 8), (3, 5)


def rnn(opset):
    """A GRU over seven steps."""
    node = onnx.helper.make_node
    squeeze = node("Squeeze", ["h"], ["y"], axes=[0]) if opset < 13 else node("Squeeze", ["h", "zero"], ["y"])
    nodes = [node("GRU", ["x", "w", "r"], ["", "h"], hidden_size=5), squeeze]
    held = {"w": weights(1, 15, 4), "r": weights(1, 15, 5)} | ({} if opset < 13 else {"zero": np.array([0])})
    return nodes, held, (7, 2, 4), (2, 5)


def model(kind, opset):
    """A model as its exporters wrote it: before opset 9, every weight is listed among the inputs."""
    nodes, held, takes, gives = kind(opset)
    x, y = (onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", takes), ("y", gives)))
    held = [onnx.numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], held)
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    made.ir_version = 3 if opset < 9 else 7
    if opset < 9:
        made.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in held)
    onnx.checker.check_model(made)
    return made, {"x": weights(*takes)}


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13])
@pytest.mark.parametrize("kind", [mlp, cnn, rnn])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_it_is_half(kind, opset, precision):
    """Every float node can compute in half, and is measured in it; the weights are half, and the model is valid."""
    made, feeds = model(kind, opset)

    converted = convert(made, [feeds], precision=precision, force_half="*", budget=Budget(Limits(relative_l2=0.1)))

    assert {True} == {decision.is_half for decision in converted.plan.decisions.values()}
    assert 0 < converted.comparison.worst.relative_l2
    onnx.checker.check_model(converted.model, full_check=True)
    half = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    assert half in {tensor.data_type for tensor in converted.model.graph.initializer}


def test_a_model_that_stays_old_is_refused():
    """A model that cannot be raised to a measurable opset is an error with a hint, not a defect."""
    feeds = {"x": weights(1, 3, 4), "s": weights(1, 4)}
    with pytest.raises(ConversionError, match="half cannot be measured in the model's opset 8") as caught:
        convert(onnx.parser.parse_model(SCAN), [feeds])
    with pytest.raises(ConversionError):
        check_measurable(prepare(ir.from_onnx_text(SCAN)))

    assert "--no-calibrate" in caught.value.hint
    assert convert(onnx.parser.parse_model(SCAN), [feeds], calibrate=False).comparison
