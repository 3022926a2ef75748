"""Sessions and files of in-memory models of any size."""

import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration import sessions
from demi.calibration.sessions import save_model, session_for, weight_bytes
from tests.models import BRANCHES, MLP, parse, run, text


def test_weight_bytes():
    """All initializers count: 12 + 3 + 6 numbers of four bytes."""
    assert 84 == weight_bytes(parse(MLP))


def test_weights_of_subgraphs_count():
    """Initializers of subgraphs count as well."""
    model = parse(
        "m (bool c, float[n] x) => (float[n] y) { y = If (c) <then_branch = a () => (float[n] p) <float k = {2.0}> { p = Mul(x, k) }, else_branch = b () => (float[n] q) { q = Neg(x) }> }"
    )

    assert 4 == weight_bytes(model)
    assert 4 == weight_bytes(parse(BRANCHES))


def test_saved_model_answers_as_before(tmp_path):
    """A saved model has the same outputs."""
    save_model(parse(MLP), tmp_path / "m.onnx")
    feeds = {"x": np.ones((1, 4), np.float32)}

    np.testing.assert_array_equal(run(parse(MLP), feeds)["y"], run(ir.load(tmp_path / "m.onnx"), feeds)["y"])


@pytest.fixture
def small_limit(monkeypatch):
    """Lower protobuf's limit, so that a tiny model exceeds it: writing two real gigabytes would take too long."""
    monkeypatch.setattr(sessions, "PROTOBUF_LIMIT", 10)


def test_large_model_has_its_weights_beside_it(tmp_path, small_limit):
    """Weights beyond protobuf's limit are written to a file model_with_external_weights the model."""
    model = parse(MLP)
    before = text(model)
    save_model(model, tmp_path / "m.onnx")

    assert ["m.onnx", "m.onnx.data"] == sorted(path.name for path in tmp_path.iterdir())
    assert before == text(model)
    with sessions.session_for(ir.load(tmp_path / "m.onnx")) as session:
        assert (1, 2) == session.run({"x": np.ones((1, 4), np.float32)})["y"].shape


def test_large_model_runs_through_a_file(small_limit):
    """A session of a model beyond the limit has the same outputs."""
    with session_for(parse(MLP)) as session:
        assert (1, 2) == session.run({"x": np.ones((1, 4), np.float32)})["y"].shape


@pytest.fixture
def model_with_external_weights(tmp_path):
    """Return a small model whose weights are in a file model_with_external_weights it."""
    (tmp_path / "in").mkdir()
    ir.save(parse(MLP), tmp_path / "in" / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    return ir.load(tmp_path / "in" / "m.onnx")


def test_small_model_with_weights_beside_it_runs(model_with_external_weights):
    """A session finds the weight file from any working directory."""
    feeds = {"x": np.ones((1, 4), np.float32)}

    np.testing.assert_array_equal(run(parse(MLP), feeds)["y"], run(model_with_external_weights, feeds)["y"])


def test_small_model_takes_its_weights_with_it(tmp_path, model_with_external_weights):
    """A model saved elsewhere includes its weights and refers to no other file."""
    save_model(model_with_external_weights, tmp_path / "out.onnx")
    (tmp_path / "in" / "m.data").unlink()

    assert (1, 2) == run(ir.load(tmp_path / "out.onnx"), {"x": np.ones((1, 4), np.float32)})["y"].shape


def test_packed_weights_beside_a_model_are_read(tmp_path):
    """Weights packed two to a byte are read unchanged."""
    source = "m (float[2] x) => (float[2] y) <int4[2] q, float s = {0.5}> { d = DequantizeLinear(q, s) y = Add(x, d) }"
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 21]>' + source)
    packed = ir.Value(name="q", type=ir.TensorType(ir.DataType.INT4), shape=ir.Shape([2]))
    packed.const_value = ir.tensor(np.array([-3, 5], np.int8), dtype=ir.DataType.INT4, name="q")
    model.graph[0].replace_input_with(0, packed)
    model.graph.register_initializer(packed)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)

    assert [-1.5, 2.5] == run(ir.load(tmp_path / "m.onnx"), {"x": np.zeros(2, np.float32)})["y"].tolist()
