"""Defaults: initializers that are listed among the inputs are weights, and may be half."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.exporter.open_source import open_source
from demi.exporter.passes.input_defaults import defaults_to_constants
from demi.exporter.passes.prepare import prepare
from demi.exporter.sources.options import SourceOptions
from tests.models import check

TEXT = """<ir_version: IR, opset_import: ["" : 8]>
m (float[n, 2] x, float[2, 2] w = {1.0, 2.0, 3.0, 4.0}, float k = {2.0}) => (float[n, 2] y) { a = MatMul(x, w) y = Mul(a, k) }"""


def listed(ir_version: int) -> onnx.ModelProto:
    """A model whose weights are inputs as well."""
    model = onnx.parser.parse_model(
        TEXT.replace("IR", str(ir_version)).replace(", float[2, 2] w = {1.0, 2.0, 3.0, 4.0}, float k = {2.0}", "")
    )
    for name, array in (("w", np.float32([[1, 2], [3, 4]])), ("k", np.float32(2))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, array.shape))
    return model


@pytest.mark.parametrize("ir_version", [3, 8])
def test_they_are_constants(ir_version, tmp_path):
    """A source takes what requests bring, and holds the rest."""
    onnx.save(listed(ir_version), tmp_path / "m.onnx")
    source = open_source(tmp_path / "m.onnx", SourceOptions())

    assert ["x"] == [value.name for value in source.model.graph.inputs]
    assert {"w", "k"} == set(source.model.graph.initializers)
    check(prepare(source.model))


@pytest.mark.parametrize(("ir_version", "said"), [(3, 0), (8, 1)])
def test_a_number_that_callers_could_pass_is_reported(ir_version, said):
    """From IR version 4 on a caller might set a single number: that it is a constant now is said."""
    held = defaults_to_constants(ir.from_proto(listed(ir_version)))

    assert said == len(held.notes)
    assert all("inputs with a default in the source, constants in the bundle" in line for line in held.notes)


def test_old_files_mean_constants():
    """Before IR version 4 every weight had to be an input: `prepare` makes them plain initializers."""
    assert ["x"] == [value.name for value in prepare(ir.from_proto(listed(3))).graph.inputs]
    assert ["x", "w", "k"] == [value.name for value in prepare(ir.from_proto(listed(8))).graph.inputs]


def test_a_model_without_defaults_is_handed_back():
    """Nothing is copied for nothing."""
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]>\nm (float[n] x) => (float[n] y) { y = Relu(x) }'
    )

    assert model is defaults_to_constants(model).model
