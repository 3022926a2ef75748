"""Kernels that compute several nodes: found, rounded once, and planned for."""

import numpy as np
import pytest

from demi.calibration.emulation.switchable import Emulator
from demi.calibration.emulation.widen import widen
from demi.exporter.conversion import emulate
from demi.exporter.passes.lower import apply_plan
from demi.exporter.planning.find_plan import PlanSettings, find_plan
from demi.exporter.planning.fused_kernels import fused_by_openvino, shared_kernels
from demi.float16 import BF16, round_through
from tests.exporter.planning.helpers import floats, listed, operands, plan, samples
from tests.models import prepared, run

LAYER = f"""m (float[n, 16] x) => (float[n, 16] y)
<float[16, 16] w = {{{listed(floats(16, 16, scale=0.25))}}}, float[16] b = {{{listed(floats(16, seed=1))}}}>
{{ [mm] h = MatMul(x, w) [bias] s = Add(h, b) [act] r = Relu(s) [res] y = Add(r, x) }}"""
ONE = dict.fromkeys(("mm", "bias", "act", "res"), "mm")
X = floats(8, 16, seed=2)


def once_rounded():
    """Return the layer in BF16 with one rounding at its end, computed with NumPy."""
    model = prepared(LAYER)
    w, b = (round_through(model.graph.initializers[name].const_value.numpy(), BF16) for name in ("w", "b"))
    x = round_through(X, BF16)
    return round_through(np.maximum(x @ w + b, 0) + x, BF16)


class TestKernels:
    """The kernel of each node, from the names of executed kernels."""

    def test_named_nodes_share_a_kernel(self):
        """Nodes that one kernel names share it; a node alone has none."""
        kernels = shared_kernels(prepared(LAYER), [("mm", "bias", "act"), ("res",)])

        assert dict.fromkeys(("mm", "bias", "act"), "mm") == kernels

    def test_a_replaced_pattern(self):
        """A node that no kernel names is in that of its readers; names of the runtime's own operators do not count."""
        assert dict.fromkeys(ONE, "bias") == shared_kernels(prepared(LAYER), [("MatMul_7", "bias", "res")])

    def test_readers_in_different_kernels(self):
        """A node whose readers are in different kernels is in neither."""
        source = "m (float[n] x) => (float[n] y) { [e] e = Exp(x) [a] a = Neg(e) [b] b = Sqrt(e) [c] y = Add(a, b) }"

        assert {"b": "b", "c": "b"} == shared_kernels(prepared(source), [("a",), ("b", "c")])

    def test_openvino(self):
        """OpenVINO computes a product with its bias and activation in one kernel."""
        pytest.importorskip("openvino")

        assert dict.fromkeys(("mm", "bias", "act"), "bias") == fused_by_openvino(prepared(LAYER))


class TestRounding:
    """The emulators' roundings: only of what leaves a kernel."""

    def test_one_rounding(self):
        """Both emulators round a fused layer once, at its end."""
        model = prepared(LAYER)
        everything = frozenset(operands(model, BF16))
        mixed = apply_plan(model, plan(model, everything, BF16)).model
        with Emulator(model, operands(model, BF16), BF16, kernels=ONE) as emulator:
            switched = emulator.run(everything, {"x": X})["y"]

        np.testing.assert_array_equal(once_rounded(), switched)
        np.testing.assert_array_equal(once_rounded(), run(widen(mixed, fused=ONE), {"x": X})["y"])
        assert not np.array_equal(once_rounded(), run(widen(mixed), {"x": X})["y"])

    @pytest.mark.parametrize("half", [{"mm", "bias"}, {"act", "res"}, {"mm", "act"}, {"bias"}], ids=sorted)
    def test_kernels_that_a_plan_splits(self, half):
        """Where a plan splits a kernel, what crosses precisions is rounded: both emulators agree."""
        model = prepared(LAYER)
        mixed = apply_plan(model, plan(model, half, BF16)).model
        with Emulator(model, operands(model, BF16), BF16, kernels=ONE) as emulator:
            switched = emulator.run(frozenset(half), {"x": X})["y"]

        np.testing.assert_array_equal(switched, run(widen(mixed, fused=ONE), {"x": X})["y"])
        assert not np.array_equal(switched, run(model, {"x": X})["y"])


class TestPlan:
    """Plans for a device that fuses."""

    def test_less_error_is_predicted(self):
        """The plan names its kernels, predicts less error than one without, and the emulated model agrees with it."""
        model, given = prepared(LAYER), samples({"x": X})
        alone = find_plan(model, given, PlanSettings("bf16"))
        fused = find_plan(model, given, PlanSettings("bf16", fusing=lambda _: ONE))
        mixed = apply_plan(model, fused.plan).model

        assert ONE == fused.plan.kernels
        assert {} == alone.plan.kernels
        assert fused.predicted["y"] < alone.predicted["y"]
        (answer,) = emulate(mixed, given, fused.plan.kernels)
        error = np.linalg.norm(answer["y"] - run(model, {"x": X})["y"]) / np.linalg.norm(run(model, {"x": X})["y"])
        assert fused.predicted["y"] == pytest.approx(error, rel=1e-3)
