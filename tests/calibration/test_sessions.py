"""Sessions and files for graphs in memory, whatever their size."""

import numpy as np
import onnx_ir as ir
import pytest

from calibration import sessions
from calibration.sessions import save_model, session_for, weight_bytes
from tests.models import BRANCHES, MLP, parse, run, text


def test_weight_bytes():
    """All initializers count: 12 + 3 + 6 numbers of four bytes."""
    assert 84 == weight_bytes(parse(MLP))


def test_weights_of_subgraphs_count():
    """So do those of subgraphs."""
    model = parse(
        "m (bool c, float[n] x) => (float[n] y) { y = If (c) <then_branch = a () => (float[n] p) <float k = {2.0}> { p = Mul(x, k) }, else_branch = b () => (float[n] q) { q = Neg(x) }> }"
    )

    assert 4 == weight_bytes(model)
    assert 4 == weight_bytes(parse(BRANCHES))


def test_saved_model_answers_as_before(tmp_path):
    """A saved model is read back to the same answers."""
    save_model(parse(MLP), tmp_path / "m.onnx")
    feeds = {"x": np.ones((1, 4), np.float32)}

    np.testing.assert_array_equal(run(parse(MLP), feeds)["y"], run(ir.load(tmp_path / "m.onnx"), feeds)["y"])


@pytest.fixture
def small_limit(monkeypatch):
    """A limit that even a tiny model passes: writing two real gigabytes would take too long here."""
    monkeypatch.setattr(sessions, "PROTOBUF_LIMIT", 10)


def test_large_model_has_its_weights_beside_it(tmp_path, small_limit):
    """Weights that one protobuf cannot hold go into a file beside the model, which finds them there."""
    model = parse(MLP)
    before = text(model)
    save_model(model, tmp_path / "m.onnx")

    assert ["m.onnx", "m.onnx.data"] == sorted(path.name for path in tmp_path.iterdir())
    assert before == text(model)
    with sessions.session_for(ir.load(tmp_path / "m.onnx")) as session:
        assert (1, 2) == session.run({"x": np.ones((1, 4), np.float32)})["y"].shape


def test_large_model_runs_through_a_file(small_limit):
    """A session for a model beyond the limit answers as any other."""
    with session_for(parse(MLP)) as session:
        assert (1, 2) == session.run({"x": np.ones((1, 4), np.float32)})["y"].shape
