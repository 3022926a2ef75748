"""A model stored with weights in half and FP32 islands: half the bytes, rounded as kernels round, FP32 where marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from demi.float16 import BF16, round_through
from demi.runtime.openvino.capability import read_cpu
from demi.runtime.openvino.options import OvSettings
from demi.runtime.openvino.session import open_session
from demi.runtime.openvino.stored import GRAPH, WEIGHTS, digest_of, write_stored

pytest.importorskip("openvino")

RNG = np.random.default_rng(0)
EXACT = RNG.integers(-128, 128, (64, 64)).astype(np.float32)  # in both half precisions


def write(folder: Path, *weights: np.ndarray) -> Path:
    """Write `y = relu(x @ w0) @ w1 ...` with the nodes product0, relu0, product1 and so on."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy")
    nodes, value = [], "x"
    for index, _ in enumerate(weights):
        last = index == len(weights) - 1
        product = "y" if last else f"p{index}"
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [product], name=f"product{index}"))
        if not last:
            value = f"r{index}"
            nodes.append(helper.make_node("Relu", [product], [value], name=f"relu{index}"))
    constants = [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    path = folder / "m.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    )
    return path


def answer(path: Path, hint: str, x: np.ndarray) -> np.ndarray:
    return open_session(path, OvSettings(hint, threads=1)).run({"x": x})["y"]  # type: ignore[arg-type]


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_weights_take_half_the_bytes(tmp_path, half):
    """The stored file holds two bytes for each weight, and answers in FP32 as the model does."""
    source = write(tmp_path, EXACT, EXACT)
    x = np.eye(3, 64, dtype=np.float32)

    write_stored(source, tmp_path / "s", half)

    assert (tmp_path / f"s{WEIGHTS}").stat().st_size < 1.1 * EXACT.nbytes
    np.testing.assert_array_equal(answer(source, "f32", x), answer(tmp_path / f"s{GRAPH}", "f32", x))


def test_weights_are_rounded_to_nearest_even(tmp_path):
    """In BF16 the stored weights are those that a kernel makes of the FP32 ones."""
    weight = RNG.standard_normal((64, 64)).astype(np.float32)
    source = write(tmp_path, weight)

    write_stored(source, tmp_path / "s", "bf16")

    found = answer(tmp_path / f"s{GRAPH}", "f32", np.eye(64, dtype=np.float32))
    np.testing.assert_array_equal(round_through(weight, BF16), found)


@pytest.mark.parametrize(("half", "expected"), [("fp16", 2), ("bf16", 1)])
def test_weights_beyond_the_range_stay_fp32(tmp_path, half, expected):
    """A weight that FP16 cannot hold stays as it is; BF16 holds it."""
    source = write(tmp_path, EXACT * 1024)

    write_stored(source, tmp_path / "s", half)

    size = (tmp_path / f"s{WEIGHTS}").stat().st_size
    assert expected == round(size / (EXACT.nbytes / 2))


def test_marked_nodes(tmp_path):
    """Nodes of the graph are marked, their weights stay FP32, and names it does not have are left out."""
    source = write(tmp_path, EXACT, EXACT)

    marked = write_stored(source, tmp_path / "s", "bf16", frozenset({"product0", "gone"}))

    assert ("product0",) == marked
    assert 3 == round((tmp_path / f"s{WEIGHTS}").stat().st_size / (EXACT.nbytes / 2))


@pytest.mark.skipif(not read_cpu().has_units("bf16"), reason="this CPU has no BF16 units")
@pytest.mark.parametrize(("precise", "fp32"), [((), False), (("y",), True)], ids=["all half", "marked"])
def test_a_marked_node_is_computed_in_fp32(tmp_path, precise: Sequence[str], fp32):
    """With a BF16 hint a marked product is exact in FP32, and without the mark it is not; OpenVINO names the last layer by
    the model's output."""
    weight = RNG.standard_normal((64, 64)).astype(np.float32)
    write_stored(write(tmp_path, weight), tmp_path / "s", "bf16", frozenset(precise))
    x = RNG.standard_normal((4, 64)).astype(np.float32)

    error = np.linalg.norm(answer(tmp_path / f"s{GRAPH}", "bf16", x) - x @ weight) / np.linalg.norm(x @ weight)

    assert bool(error < 1e-5) is fp32


@pytest.mark.parametrize("suffix", [GRAPH, WEIGHTS])
def test_the_digest_covers_both_files(tmp_path, suffix):
    """A change of either file changes the digest."""
    write_stored(write(tmp_path, EXACT), tmp_path / "s", "bf16")
    before = digest_of(tmp_path / "s")

    with (tmp_path / f"s{suffix}").open("ab") as file:
        file.write(b"\0")

    assert digest_of(tmp_path / "s") != before
