"""Defects found with real shapes, each on the smallest model that shows it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from demi.exporter.api import convert
from demi.exporter.passes.fill_types import fill_types
from tests.models import MLP, parse, prepared

BEHIND_CONTRIB = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
behind (float[8, 4] x) => (float[8, 3] y)
<float[4, 3] w = {0.1, -0.2, 0.3, 0.4, 0.5, -0.6, 0.7, 0.8, 0.9, -1.0, 1.1, 1.2}>
{
  [bend] bent = com.microsoft.Gelu(x)
  [weigh] weighed = MatMul(bent, w)
  [act] y = Relu(weighed)
}
"""
"""ONNX infers no type behind an operator it has no schema for; ONNX Runtime does."""

SELECTION = """
choosing (float[1, 3, 4] x) => (int64[n, 3] selected)
<float[1, 1, 3] scores = {0.9, 0.8, 0.7}, int64 most = {3}, float overlap = {0.5}, float thousand = {1000.0}>
{
  [far] boxes = Mul(x, thousand)
  [choose] selected = NonMaxSuppression(boxes, scores, most, overlap)
}
"""


def with_notes(text: str) -> onnx.ModelProto:
    """The model, with words and a key on its first output."""
    model = ir.to_proto(parse(text))
    model.graph.output[0].doc_string = "scores"
    model.graph.output[0].metadata_props.add(key="unit", value="logit")
    return model


def test_standard_operators_behind_custom_ones_are_half():
    """A MatMul whose input comes from a contrib operator is half, as the contrib operator itself is."""
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)

    done = convert(ir.to_proto(parse(BEHIND_CONTRIB)), [{"x": x}], keep_io_types=False)

    assert {"bend": True, "weigh": True, "act": True} == {name: d.is_half for name, d in done.plan.decisions.items()}
    onnx.checker.check_model(done.model, full_check=True)


def test_types_that_onnx_cannot_infer_come_from_the_runtime():
    """Every inner tensor behind a contrib operator gets its type; public outputs are left as they are given."""
    model = prepared(BEHIND_CONTRIB)
    inner = {value.name: value for node in model.graph for value in node.outputs}

    assert None is inner["bent"].type
    assert fill_types(model)
    assert [ir.DataType.FLOAT] * 2 == [inner["bent"].dtype, inner["weighed"].dtype]
    assert ["y"] == [value.name for value in model.graph.outputs]


def test_a_model_whose_types_are_known_is_not_asked_about():
    """Nothing is run, and nothing changes, when ONNX could infer every type."""
    assert not fill_types(prepared(MLP))


def test_declared_output_types_stay():
    """An output that is cast back to its type keeps its documentation and metadata."""
    model = with_notes(MLP)

    done = convert(model, [{"x": np.ones((2, 4), np.float32)}])

    assert done.casts
    assert list(model.graph.output) == list(done.model.graph.output)


def test_other_integers_are_not_called_nan():
    """If half first changes an integer answer, the report says so and does not mention NaN."""
    x = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.5005], [0, 0, 0.2, 0.2]]], np.float32)

    done = convert(ir.to_proto(parse(SELECTION)), [{"x": x}], precision="bf16")

    assert done.planned.first_divergence is not None
    assert done.planned.first_divergence.startswith("a result other than FP32's first arises on `selected`")
