"""Operators that ONNX Runtime has in ONNX's own domain are as valid as ONNX's."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from demi.errors import SourceError
from demi.exporter import convert, convert_file
from demi.exporter.pipeline import export_bundle
from demi.exporter.request import ExportRequest
from demi.exporter.sources.onnx_checker import check_file, runtime_operators
from demi.exporter.sources.onnx_file import read_onnx
from demi.exporter.sources.options import SourceOptions
from demi.plan import Reason
from demi.runtime.onnxruntime.session import operator_schemas
from tests.models import parse, run

NORMALIZED = """
<ir_version: 9, opset_import: ["" : 17]>
normalized (float[n, 4] x) => (float[n, 4] y) <float[4] g = {1.0, 0.5, 2.0, 1.0}>
{
  [before] a = Relu(x)
  [norm] b = SimplifiedLayerNormalization <axis = -1, epsilon = 0.000001> (a, g)
  [after] y = Neg(b)
}
"""
IN_A_BRANCH = """
<ir_version: 9, opset_import: ["" : 17]>
branch (bool flag, float[n, 4] x) => (float[n, 4] y) <float[4] g = {1.0, 0.5, 2.0, 1.0}>
{
  y = If (flag) <
    then_branch = yes () => (float[n, 4] out) { out = SimplifiedLayerNormalization <axis = -1> (x, g) },
    else_branch = no () => (float[n, 4] out) { out = Neg(x) }
  >
}
"""
OLDER = """
<ir_version: 8, opset_import: ["" : 13]>
older (float[n, 4] x) => (float[n, 4] y) <float[4] g = {1.0, 0.5, 2.0, 1.0}, float[4] b = {0.1, 0.2, 0.3, 0.4}>
{
  [norm] a = LayerNormalization <axis = -1> (x, g, b)
  [after] y = Neg(a)
}
"""
"""LayerNormalization came to ONNX with opset 17."""


def saved(folder, source, **options):
    """A model in text as a file."""
    path = folder / "model.onnx"
    model = ir.to_proto(parse(source))
    for tensor in model.graph.initializer:  # raw, as the weights of real files are
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, path, **options)
    return path


@pytest.mark.parametrize("source", [NORMALIZED, IN_A_BRANCH, OLDER], ids=["normalized", "in a branch", "older"])
def test_a_file_of_the_runtimes_operators_is_read(tmp_path, source):
    """A file with the runtime's operators is read, in the main graph or in subgraphs."""
    assert read_onnx(saved(tmp_path, source)).graph.outputs


@pytest.mark.parametrize(
    ("source", "op"), [(NORMALIZED, "SimplifiedLayerNormalization"), (OLDER, "LayerNormalization")]
)
def test_they_are_half_like_others(tmp_path, source, op):
    """Their types come from the runtime's schemas, and what stands behind them is half as well."""
    plan = convert_file(saved(tmp_path, source), tmp_path / "half.onnx")

    assert {Reason.SAFE} == {decision.reason for decision in plan.decisions.values()}
    assert runtime_operators(ir.load(tmp_path / "half.onnx")) == {op}


def test_an_export(tmp_path):
    """From file to bundle, with and without a measure."""
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    options = SourceOptions(samples=({"x": rows},))

    exported = export_bundle(ExportRequest(saved(tmp_path, NORMALIZED), tmp_path / "m", options=options, report=False))

    assert exported.conversion.comparison
    assert exported.conversion.planned.plan.is_half("norm")


def test_a_converted_model_computes_it():
    """The half model still runs, and answers alike."""
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)

    converted = convert(ir.to_proto(parse(NORMALIZED)), [{"x": x}])

    want = run(parse(NORMALIZED), {"x": x})["y"]
    np.testing.assert_allclose(want, run(ir.from_proto(converted.model), {"x": x})["y"], atol=1e-2)


@pytest.mark.parametrize("op", sorted({each.name for each in operator_schemas() if each.domain == ""}))
def test_every_operator_of_the_runtime(tmp_path, op):
    """No operator is unknown that ONNX Runtime registers in ONNX's domain, in any version of it."""
    for since in {each.since_version for each in operator_schemas() if (each.domain, each.name) == ("", op)}:
        model = parse(f'<ir_version: 8, opset_import: ["" : {since}]> m (float[n] x) => (float[n] y) {{ y = Neg(x) }}')
        node = ir.node(op, [])
        model.graph.append(node)
        known = runtime_operators(model) or onnx.defs.has(op, max_inclusive_version=since, domain="")

        assert known, f"{op} of opset {since}"


def test_an_unknown_operator(tmp_path):
    """It is refused by name."""
    with pytest.raises(SourceError, match="No Op registered for Nonsense"):
        read_onnx(saved(tmp_path, NORMALIZED.replace("Relu", "Nonsense")))


def test_a_file_that_is_wrong_besides(tmp_path):
    """The rest of the file is checked all the same."""
    with pytest.raises(SourceError, match="nowhere"):
        read_onnx(saved(tmp_path, NORMALIZED.replace("Neg(b)", "Neg(nowhere)")))


def test_types_are_checked_all_the_same(tmp_path):
    """With `full`, an operand of a wrong type is found."""
    path = saved(tmp_path, NORMALIZED.replace("Relu(x)", "Not(x)"))

    with pytest.raises(onnx.shape_inference.InferenceError):
        check_file(path, ir.load(path), full=True)


def test_weights_in_other_files(tmp_path):
    """External weights are not read, and must lie below the model's folder."""
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    path = saved(tmp_path, NORMALIZED, **options)

    assert read_onnx(path).graph.outputs

    (tmp_path / "inside").mkdir()
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../weights.bin"
    onnx.save(model, tmp_path / "inside" / "model.onnx")
    with pytest.raises(SourceError, match="not below the model's folder"):
        read_onnx(tmp_path / "inside" / "model.onnx")
