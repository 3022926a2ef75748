"""Rescaling whole models: what is repaired, how, and when a model is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.calibration import sessions, weights
from demi.calibration.observe import observe
from demi.calibration.rescaling.checker import check_rescaled
from demi.calibration.samples import Samples
from demi.exporter.passes.prepare import prepare
from demi.exporter.planning.costs import DeviceCosts
from demi.exporter.rescaling.api import rescale_file
from demi.exporter.rescaling.apply import scaled, shifted
from demi.exporter.rescaling.rescale import Rescaling, differing_bits, rescale_prepared
from demi.float16 import BF16
from examples import overflow
from tests.models import MLP, prepared

LARGE = np.linspace(-3000, 3000, 8, dtype=np.float32).reshape(2, 4)

TIED = """
tied (int64[n] ids, float[n, 4] z) => (float[n, 3] y)
<float[3, 4] table = {900, -800, 700, 600, 500, 400, -300, 200, 100, 50, 25, 10}, float[3, 4] small = {1, 2, 3, 4, 4, 3, 2, 1, 1, 1, 1, 1},
 float down = {1e-6}>
{
  [look] rows = Gather(table, ids)
  [square] squares = Mul(rows, rows)
  [shrink] ordinary = Mul(squares, down)
  [turn] turned = Transpose<perm=[1, 0]>(table)
  [head] scores = MatMul(z, turned)
  [soft] chances = Softmax(scores)
  [sum] total = ReduceSum(ordinary)
  [y] y = Add(chances, total)
}
"""
"""The table is read twice: its rows overflow when they are squared, and as the head's weight it must keep its scale."""

BRANCHES = """
branches (float[2, 4] x, bool when) => (float[2, 4] y)
<float hundred = {100.0}, float small = {0.001}>
{
  [grow] big = Mul(x, hundred)
  [choose] chosen = If(when) <
    then_branch = yes () => (float[2, 4] a) { [double] a = Add(big, big) },
    else_branch = no () => (float[2, 4] b) { [pass] b = Neg(big) }
  >
  [shrink] y = Mul(chosen, small)
}
"""

LOOP = """
loop (float[2, 4] x) => (float[2, 4] y)
<float hundred = {100.0}, float small = {0.001}, int64 turns = {3}, bool go = {1}>
{
  [grow] big = Mul(x, hundred)
  [sum] last = Loop(turns, go, big) <
    body = turn (int64 i, bool more, float[2, 4] held) => (bool again, float[2, 4] next)
    { again = Identity(more)  [halve] next = Relu(held) }
  >
  [shrink] y = Mul(last, small)
}
"""

INSIDE = """
inside (float[2, 4] x) => (float[2, 4] y)
<float hundred = {100.0}, float small = {0.0078125}, int64 turns = {3}, bool go = {1}>
{
  [sum] last = Loop(turns, go, x) <
    body = turn (int64 i, bool more, float[2, 4] held) => (bool again, float[2, 4] next)
    { again = Identity(more)  [grow] big = Mul(held, hundred)  [shrink] next = Mul(big, small) }
  >
  [y] y = Tanh(last)
}
"""
"""Nothing overflows but a tensor inside of the loop's body."""

QUANTIZED = """
quantized (float[2, 4] x) => (float[2, 4] y)
<float hundred = {100.0}, float small = {0.001}, float step = {3000.0}, int8 zero = {0}>
{
  [grow] big = Mul(x, hundred)
  [narrow] bytes = QuantizeLinear(big, step, zero)
  [widen] again = DequantizeLinear(bytes, step, zero)
  [shrink] y = Mul(again, small)
}
"""


class TestOverflow:
    """The model of `examples/overflow.py`, and others that overflow on the way."""

    def test_no_node_stays_single_and_no_bit_changes(self):
        """Four nodes leave half's range as they are, and none when the weight is 2^-4 times itself."""
        found, model, feeds = _rescaled(prepare(ir.from_proto(overflow.build())), x=overflow.samples())

        assert found.certificate is not None
        assert (4, 0) == (found.certificate.before.nodes, found.certificate.after.nodes)
        assert [("weight", -4), ("epsilon", -8)] == [(each.name, each.exponent) for each in found.certificate.constants]
        assert [] == differing_bits(model, found.model, feeds)

    def test_the_reason_names_what_was_multiplied(self):
        """The nearest scaled factor, up from what a node reads."""
        found, _, _ = _rescaled(prepare(ir.from_proto(overflow.build())), x=overflow.samples())

        assert "fits since `weight` x 2^-4" == found.fits["square"]
        assert {"square", "mean", "add_epsilon", "root"} == set(found.fits)

    @pytest.mark.parametrize("source", [BRANCHES, LOOP, QUANTIZED], ids=["branches", "loop", "quantized"])
    def test_through_bodies_and_bytes(self, source: str):
        """Branches, loops and quantized tensors pass the scale on; the scale of the bytes takes the exponent."""
        inputs: dict[str, Any] = {"x": LARGE}
        if source is BRANCHES:
            inputs["when"] = np.array(True)
        found, model, feeds = _rescaled(prepared(source), **inputs)

        assert found.certificate is not None
        assert 0 == found.certificate.after.nodes
        assert [] == differing_bits(model, found.model, feeds)

    def test_overflow_inside_of_a_body(self):
        """Its range is observed turn by turn, and two constants of the body cancel."""
        found, model, feeds = _rescaled(prepared(INSIDE), x=LARGE)

        assert found.certificate is not None
        assert (2, 0) == (found.certificate.before.nodes, found.certificate.after.nodes)
        assert {"grow", "shrink"} == set(found.fits)
        assert [] == differing_bits(model, found.model, feeds)

    def test_shared_constant_is_copied_where_exponents_differ(self):
        """A table that is an embedding and the head's weight: the embedding becomes a copy, the weight stays."""
        found, model, feeds = _rescaled(prepared(TIED), ids=np.array([0, 1, 2]), z=np.full((3, 4), 0.001, np.float32))

        assert found.certificate is not None
        assert ["table"] == [each.source for each in found.certificate.constants if each.source == "table"]
        assert "table" in found.model.graph.initializers
        assert model.graph.initializers["table"].const_value is found.model.graph.initializers["table"].const_value
        assert [] == differing_bits(model, found.model, feeds)

    def test_the_given_model_is_not_changed(self):
        """Rescaling works on a copy."""
        model = prepare(ir.from_proto(overflow.build()))
        before = model.graph.initializers["weight"].const_value.numpy().copy()
        _rescaled(model, x=overflow.samples())

        assert np.array_equal(before, model.graph.initializers["weight"].const_value.numpy())


class TestLeftAlone:
    """Models that nothing is done to."""

    def test_model_that_fits(self):
        """Nothing overflows, nothing vanishes."""
        found, model, _ = _rescaled(prepared(MLP), x=np.ones((2, 4), np.float32))

        assert found.model is model
        assert not found
        assert "" == found.why_not

    def test_bf16_has_the_range_of_fp32(self):
        """Scaling brings no bits."""
        model = prepare(ir.from_proto(overflow.build()))
        feeds = [{"x": overflow.samples()}]
        profile = observe(model, Samples(tuple(feeds), "the test"))

        assert rescale_prepared(model, feeds, profile, fmt=BF16).model is model

    def test_input_of_a_pinned_operator(self):
        """What a sigmoid reads keeps its scale: the model is left alone, and says why."""
        found, model, _ = _rescaled(
            prepared("m (float[2, 4] x) => (float[2, 4] y) <float k = {100.0}> { h = Mul(x, k)\n y = Sigmoid(h) }"),
            x=LARGE,
        )

        assert found.model is model
        assert "no powers of two bring more of it into half's range" == found.why_not


class TestShifted:
    """Exponent bits of float32 numbers."""

    def test_only_exponents_change(self):
        """Signs, digits, zeros, infinities and NaN stay."""
        numbers = np.array([1.5, -0.1, 0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)

        assert (numbers * np.float32(2.0**-7)).tobytes() == shifted(numbers, -7).tobytes()

    @pytest.mark.parametrize(("number", "exponent"), [(1e-38, -1), (3e38, 1), (1e-40, 1)])
    def test_leaving_the_normal_numbers_is_refused(self, number: float, exponent: int):
        """A result that is subnormal or infinite, or a number that is subnormal, would lose digits."""
        with pytest.raises(ValueError, match="leaves the normal numbers"):
            shifted(np.array([number], np.float32), exponent)

    def test_weight_in_another_file_is_scaled_when_it_is_read(self, tmp_path: Path):
        """A lazy tensor stands for it: nothing is in memory before."""
        numbers = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
        (tmp_path / "w.bin").write_bytes(numbers.tobytes())
        external = ir.ExternalTensor(
            "w.bin", 0, numbers.nbytes, ir.DataType.FLOAT, shape=ir.Shape((2, 3)), name="w", base_dir=tmp_path
        )

        found = scaled(external, -3)

        assert isinstance(found, ir.LazyTensor)
        assert np.array_equal(numbers / 8, found.numpy())

    def test_a_streamed_weight_is_never_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Its range, its proof and another factor read it piece by piece."""
        monkeypatch.setattr(weights, "PIECE", 4)
        numbers = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
        (tmp_path / "w.bin").write_bytes(numbers.tobytes())
        external = ir.ExternalTensor(
            "w.bin", 0, numbers.nbytes, ir.DataType.FLOAT, shape=ir.Shape((2, 3)), name="w", base_dir=tmp_path
        )
        twice = scaled(scaled(external, -3), 5)
        monkeypatch.setattr(ir.LazyTensor, "numpy", None)

        assert [4, 2] == [piece.size for piece in weights.pieces(twice)]
        assert 24.0 == weights.weight_range(twice).largest


class TestOutputs:
    """Outputs keep their scale; a Mul in front of one lets a heavy node that makes it be half."""

    PRODUCT = """
    m (float[64, 64] x) => (float[64, 64] y)
    <float hundred = {100.0}>
    {
      [grow] big = Mul(x, hundred)
      [more] y = MatMul(big, big)
    }
    """
    FLOPS_ALONE = DeviceCosts(bandwidth=1e15, half_flops=1.0, single_flops=0.5)

    def rescaled(self) -> tuple[Rescaling, ir.Model, list[dict[str, Any]]]:
        """The product of matrices of 2,000, which is beyond half."""
        model, feeds = prepared(self.PRODUCT), [{"x": np.full((64, 64), 20.0, np.float32)}]
        profile = observe(model, Samples(tuple(feeds), "the test"))
        return rescale_prepared(model, feeds, profile, device=self.FLOPS_ALONE), model, feeds

    def test_a_large_output_is_brought_back_by_a_mul(self):
        """The product is computed at a smaller scale, and the output has its name, its place and its bits."""
        found, model, feeds = self.rescaled()

        assert "more" in found.fits
        assert ["y"] == [value.name for value in found.model.graph.outputs]
        assert ["Mul", "MatMul", "Mul"] == [node.op_type for node in found.model.graph]
        assert [] == differing_bits(model, found.model, feeds)

    def test_ranges_in_front_of_an_output_are_those_observed(self):
        """The tensor that the Mul reads has a name that the original does not have, and its range is known nevertheless."""
        found, _, feeds = self.rescaled()

        assert found.profile is not None
        seen = observe(found.model, Samples(tuple(feeds), "the test"))
        assert {name: each.largest for name, each in seen.ranges.items()} == {
            name: found.profile[name].largest for name in seen.ranges
        }

    def test_a_mul_in_fp32_counts_as_an_island(self):
        """The Mul in front of the output makes numbers that half cannot hold: it stays FP32, and is counted."""
        found, _, _ = self.rescaled()

        assert found.certificate is not None
        assert 1 == found.certificate.before.nodes
        assert 1 == found.certificate.after.nodes
        assert found.certificate.after.flops < found.certificate.before.flops / 100


def test_file_with_external_weights(tmp_path: Path):
    """A file whose weights lie beside it becomes a rescaled one, each weight read when it is written."""
    onnx.save(overflow.build(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")

    found, _ = rescale_file(tmp_path / "m.onnx", tmp_path / "fixed.onnx", [{"x": overflow.samples()}])

    assert isinstance(found.model.graph.initializers["weight"].const_value, ir.LazyTensor)
    held = {
        each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "fixed.onnx").graph.initializer
    }
    weight = {each.name: onnx.numpy_helper.to_array(each) for each in overflow.build().graph.initializer}["weight"]
    assert np.array_equal(weight / 16, held["weight"])


def test_a_model_beyond_one_protobuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is run and proven from files, its weights are read in pieces, and one number changed in a file is found."""
    monkeypatch.setattr(sessions, "PROTOBUF_LIMIT", 16)
    monkeypatch.setattr(weights, "PIECE", 5)
    onnx.save(overflow.build(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")

    found, _ = rescale_file(tmp_path / "m.onnx", tmp_path / "fixed.onnx", [{"x": overflow.samples()}])

    assert found.certificate is not None
    assert (4, 0) == (found.certificate.before.nodes, found.certificate.after.nodes)
    assert (tmp_path / "fixed.onnx.data").is_file()
    original, fixed = (prepare(ir.load(tmp_path / name)) for name in ("m.onnx", "fixed.onnx"))
    assert [] == check_rescaled(original, fixed, found.certificate)
    assert [] == differing_bits(original, fixed, [{"x": overflow.samples()}])
    weight = fixed.graph.initializers["weight"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    data = bytearray((tmp_path / "fixed.onnx.data").read_bytes())
    data[(weight.offset or 0) + 4 * 7] ^= 1  # the last digit of the eighth number
    (tmp_path / "fixed.onnx.data").write_bytes(data)
    changed = prepare(ir.load(tmp_path / "fixed.onnx"))
    assert ["`weight` is not 2^-4 times `weight`"] == check_rescaled(original, changed, found.certificate)


def _rescaled(model: ir.Model, **inputs: Any) -> tuple[Rescaling, ir.Model, list[dict[str, Any]]]:
    feeds = [inputs]
    profile = observe(model, Samples(tuple(feeds), "the test"))
    return rescale_prepared(model, feeds, profile), model, feeds


SHAPED = """
shaped (float[n, 4] x) => (float[m] y)
<int64[1] flat = {-1}>
{
  [shape] sizes = Shape(x)
  [size] size = ReduceProd(sizes)
  [join] all = Concat<axis=0>(size)
  [flatten] row = Reshape(x, all)
  [square] squares = Mul(row, row)
  [bound] y = Tanh(squares)
}
"""
"""Tanh pins what overflows in front of it, and integers make the shape of what it is made from."""


def test_integers_ahead_of_an_island():
    """Nodes that compute shapes have no bounds; the overflow that no powers of two can help stays in FP32."""
    found, model, _ = _rescaled(prepared(SHAPED), x=LARGE)

    assert found.model is model
    assert found.why_not
