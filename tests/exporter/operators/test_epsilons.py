"""Epsilons of normalizations that vanish in half: which may become half's smallest number, and that this guards."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from demi.calibration.explain.culprit import strange_weights
from demi.calibration.observe import observe
from demi.calibration.samples import Samples
from demi.exporter.api import convert
from demi.exporter.operators.epsilons import find_epsilons, floored
from demi.exporter.passes.lower import apply_plan
from demi.float16 import BF16, FP16
from demi.plan import Decision, Precision, Reason, make_plan, read_plan
from tests.models import RMS_NORM, prepared

TINY = RMS_NORM.replace("1e-5", "1e-12")
ONES = np.ones((2, 4), np.float32)

LAYER_NORM = """
m (float[n, 4] x) => (float[n, 4] y)
<int64[1] last = {-1}, float eps = {1e-12}, float two = {2.0}>
{
  mean = ReduceMean(x, last)
  apart = Sub(x, mean)
  squared = Pow(apart, two)
  variance = ReduceMean(squared, last)
  [eps] safe = Add(variance, eps)
  root = Sqrt(safe)
  y = Div(apart, root)
}
"""


def found(source: str, x: np.ndarray = ONES, fmt=FP16) -> set[str]:
    """The names of the epsilons on one set of inputs."""
    model = prepared(source)
    profile = observe(model, Samples(({"x": x},), "the test"))
    return {value.name for value in find_epsilons(model, profile, fmt)}


class TestFound:
    """A root follows, and what was squared is divided."""

    @pytest.mark.parametrize(
        "source",
        [
            TINY,
            TINY.replace("Mul(x, x)", "Pow(x, two)").replace("float eps", "float two = {2.0}, float eps"),
            TINY.replace("Reciprocal(root)", "Div(one, root)").replace("float eps", "float one = {1.0}, float eps"),
            TINY.replace("[root] root = Sqrt(safe)", "root = Pow(safe, h)")
            .replace("Reciprocal(root)", "Identity(root)")
            .replace("float eps", "float h = {-0.5}, float eps"),
        ],
        ids=["square", "power", "one over", "power of -1/2"],
    )
    def test_rms_normalizations(self, source):
        """As exporters write them."""
        assert {"eps"} == found(source)

    def test_layer_normalization(self):
        """The mean is subtracted first."""
        assert {"eps"} == found(LAYER_NORM, np.float32([[1, 2, 3, 4]]))


class TestNotFound:
    """In doubt an epsilon stays in FP32, with what it guards."""

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("Mul(x, inverse)", "Mul(scale, inverse)"),  # where the mean is 0, something else is divided
            ("Sqrt(safe)", "Log(safe)"),
            ("Mul(x, x)", "Abs(x)"),
            ("1e-12", "1e-5"),  # half holds it
            ("Add(mean, eps)", "Max(mean, eps)"),
        ],
        ids=["another numerator", "logarithm", "no square", "held", "maximum"],
    )
    def test_another_expression(self, old, new):
        """What is divided must be what was squared, and be divided by the root."""
        assert set() == found(TINY.replace(old, new))

    @pytest.mark.parametrize("least", [0.0, 1e-2], ids=["zeros", "a small row"])
    def test_samples_that_feel_it(self, least):
        """A row of zeros, or one whose mean half's smallest number would move."""
        assert set() == found(TINY, np.float32([[1, 1, 1, 1], [least] * 4]))

    def test_bf16_holds_it(self):
        """BF16 has FP32's range."""
        assert set() == found(TINY, fmt=BF16)


class TestInHalf:
    """What becomes of them."""

    def test_floored(self):
        """Numbers nearer to zero than half's smallest are that one, with their sign; zeros stay."""
        numbers = np.float32([1e-12, -1e-12, 0.0, 1.0])

        assert [2.0**-24, -(2.0**-24), 0.0, 1.0] == floored(numbers, FP16).tolist()

    def test_every_node_is_half_and_zeros_stay_zeros(self):
        """The converted model gives 0 for a row of zeros, which no sample had; with an epsilon of 0 it would be NaN."""
        model = prepared(TINY)
        nodes = [node.name for node in model.graph]
        half = [Decision(name, "", Precision.HALF, Reason.SAFE) for name in nodes]
        rows = np.float32([[1, 2, 3, 4], [0, 0, 0, 0]])

        assert np.isfinite(_answers(model, make_plan("fp16", half, epsilons=["eps"]), rows)).all()
        assert np.isnan(_answers(model, make_plan("fp16", half), rows)).any()

    def test_a_conversion_keeps_nothing_in_fp32(self):
        """The plan names the epsilon, and is read back with it."""
        import onnx_ir as ir

        done = convert(ir.to_proto(prepared(TINY)), [{"x": ONES}], optimize=False)

        assert {"eps"} == done.plan.epsilons
        assert all(decision.is_half for decision in done.plan.computing)

    def test_the_plan_as_a_file(self, tmp_path):
        """`epsilons` is there where there are any."""
        plan = make_plan("fp16", [], epsilons=["eps"])
        (tmp_path / "plan.json").write_bytes(plan.to_json())

        assert plan == read_plan(tmp_path / "plan.json")
        assert b"epsilons" not in make_plan("fp16", []).to_json()

    def test_nobody_takes_it_for_a_damaged_weight(self):
        """`demi explain` compares weights with the reference's."""
        model = prepared(TINY)
        plan = make_plan("fp16", [Decision("eps", "Add", Precision.HALF, Reason.SAFE)], epsilons=["eps"])
        mixed = apply_plan(model, plan).model
        pair = [next(node for node in each.graph if node.name == "eps") for each in (mixed, model)]

        assert [] == strange_weights(*pair, FP16)


def _answers(model, plan, x):
    """The outputs under the emulator."""
    from demi.exporter.conversion import emulate

    mixed = apply_plan(model, plan).model
    assert any(each.dtype == onnx.TensorProto.FLOAT16 for each in mixed.graph.initializers.values())
    return emulate(mixed, Samples(({"x": x},), "the test"))[0]["y"]
