"""Weights of an FP32 model stored in FP16: the same answers, and nothing clamped."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from demi.runtime.openvino.compression import compress
from demi.runtime.openvino.options import OvSettings
from demi.runtime.openvino.session import open_session
from demi.runtime.openvino.stored import digest_of, write_stored

openvino = pytest.importorskip("openvino")

EXACT = np.arange(-2048, 2048, dtype=np.float32).reshape(64, 64)  # integers that FP16 holds exactly


def model(weight: np.ndarray, added: np.ndarray) -> bytes:
    """Return `y = x @ weight + added`."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "a"], ["y"])]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(added, "a")]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    ).SerializeToString()
    return made


def float_bytes(graph: openvino.Model) -> int:
    """Return the bytes of a graph's float constants."""
    constants = [op for op in graph.get_ordered_ops() if op.get_type_name() == "Constant"]
    return sum(op.data.nbytes for op in constants if op.data.dtype.kind == "f")


def test_half_the_bytes():
    """Weights take half their bytes."""
    graph = openvino.Core().read_model(model(EXACT, np.zeros(64, np.float32)))
    before = float_bytes(graph)

    assert compress(graph)
    assert float_bytes(graph) == before // 2


@pytest.mark.parametrize(
    ("added", "fits"),
    [
        (np.full(64, 65504.0, np.float32), True),
        (np.float32(-3e38), True),  # a mask's lowest number, which stays FP32
        (np.full(64, -np.inf, np.float32), True),
        (np.array([1e6, *[0.0] * 63], np.float32), False),  # OpenVINO would clamp it
    ],
    ids=["largest", "mask", "infinite", "beyond"],
)
def test_values_beyond_the_range(added, fits):
    """A model with a value that would be clamped is left as it is."""
    graph = openvino.Core().read_model(model(EXACT, added))

    assert compress(graph) is fits
    assert fits or float_bytes(graph) == EXACT.nbytes + added.nbytes


def test_a_stored_model_answers_as_the_original(tmp_path):
    """A stored file answers as the ONNX file, with weights that FP16 holds exactly."""
    source = tmp_path / "m.onnx"
    source.write_bytes(model(EXACT, np.float32(-3e38)))
    x = {"x": np.eye(3, 64, dtype=np.float32)}

    assert write_stored(source, tmp_path / "stored")

    stored = open_session(tmp_path / "stored.xml", OvSettings("f32"))
    np.testing.assert_array_equal(open_session(source, OvSettings("f32")).run(x)["y"], stored.run(x)["y"])
    assert (tmp_path / "stored.bin").stat().st_size < EXACT.nbytes


def test_nothing_is_stored_of_a_model_that_does_not_fit(tmp_path):
    """Nothing is written where a value would be clamped."""
    source = tmp_path / "m.onnx"
    source.write_bytes(model(np.full((64, 64), 1e5, np.float32) * np.eye(64, dtype=np.float32), np.float32(0)))

    assert not write_stored(source, tmp_path / "stored")
    assert [source] == list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_the_digest_covers_both_files(tmp_path, suffix):
    """A change of either file changes the digest."""
    source = tmp_path / "m.onnx"
    onnx.save(onnx.load_from_string(model(EXACT, np.float32(0))), source)
    write_stored(source, tmp_path / "stored")
    before = digest_of(tmp_path / "stored")

    with (tmp_path / f"stored{suffix}").open("ab") as file:
        file.write(b"\0")

    assert digest_of(tmp_path / "stored") != before
