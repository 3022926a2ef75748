"""Kernels of a compiled model, with the nodes that each computes."""

import onnx
import onnx.parser
import pytest

pytest.importorskip("openvino")

from demi.runtime.openvino.fusions import executed_nodes

LAYER = """<ir_version: 8, opset_import: ["" : 17]>
m (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}>
{ [mm] h = MatMul(x, w) [bias] s = Add(h, b) [act] y = Relu(s) }"""


def test_a_fused_layer():
    """A product, its bias and its activation are one kernel; the last has the name of the output that it makes."""
    kernels = executed_nodes(onnx.parser.parse_model(LAYER).SerializeToString())

    assert any({"bias", "y"} <= set(names) for names in kernels)


def test_an_operator_that_openvino_does_not_have():
    """A model that OpenVINO does not take has no kernels."""
    unknown = LAYER.replace('"" : 17', '"" : 17, "of.nobody" : 1').replace("Relu(s)", "of.nobody.Twist(s)")

    assert () == executed_nodes(onnx.parser.parse_model(unknown).SerializeToString())


def test_damaged_bytes():
    """Bytes that are not a model have no kernels."""
    assert () == executed_nodes(b"not a model")
