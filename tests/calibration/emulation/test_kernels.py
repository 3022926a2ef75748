"""Expanded reductions: the values that CUDA's kernels hold in half inside."""

import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration.emulation.kernels import spell_out
from demi.calibration.emulation.widen import widen
from demi.calibration.graph_pieces import ORIGIN
from tests.exporter.planning.helpers import floats
from tests.models import check, in_half, ops, prepared, run

X = floats(3, 4, 5, seed=1)
REDUCTIONS = ["ReduceMean", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"]


def reduction(op, axes, opset, keepdims=1, x="float[3, 4, 5] x", y="float[?, ?, ?] y"):
    """Return a model of one reduction, with its axes where the opset expects them."""
    y = y if keepdims or axes == [] else {0: "float y", 1: "float[?, ?] y", 2: "float[?] y"}[len(axes)]
    attributes = f"keepdims = {keepdims}"
    operands = "x"
    weights = ""
    if axes and opset >= 18:
        operands, weights = "x, axes", f"<int64[{len(axes)}] axes = {{{', '.join(map(str, axes))}}}>"
    elif axes:
        attributes += f", axes = [{', '.join(map(str, axes))}]"
    return f'<ir_version: 8, opset_import: ["" : {opset}]> m ({x}) => ({y}) {weights} {{ [it] y = {op} <{attributes}> ({operands}) }}'


def expanded_copy(model):
    """Return a copy with every reduction expanded."""
    return spell_out(model.clone(), lambda node: True)


def in_half_of(model, x):
    """Return the emulator's output with all nodes in half."""
    return run(widen(model), {"x": x.astype(np.float16)})["y"]


class TestEqual:
    """In float32 the expanded model computes the same."""

    @pytest.mark.parametrize("op", REDUCTIONS)
    @pytest.mark.parametrize("opset", [11, 13, 18])
    @pytest.mark.parametrize("axes", [[], [1], [-1], [0, 2]], ids=["all", "one", "negative", "two"])
    @pytest.mark.parametrize("keepdims", [0, 1])
    def test_reductions(self, op, opset, axes, keepdims):
        """Expansion handles any axes, as attribute, input or absent, with or without keepdims, in any opset."""
        y = "float y" if not axes and not keepdims else "float[?, ?, ?] y"
        model = prepared(reduction(op, axes, opset, keepdims, y=y))
        changed = expanded_copy(model)

        check(changed)
        assert op not in ops(changed)
        want, got = run(model, {"x": X})["y"], run(changed, {"x": X})["y"]
        assert want.shape == got.shape
        np.testing.assert_allclose(got, want, rtol=3e-6)

    @pytest.mark.parametrize("opset", [11, 14])
    @pytest.mark.parametrize("axis", [0, 1, -1])
    @pytest.mark.parametrize("exclusive", [0, 1])
    @pytest.mark.parametrize("reverse", [0, 1])
    def test_running_sums(self, opset, axis, exclusive, reverse):
        """CumSum is expanded along any axis, exclusive or not, in either direction."""
        model = prepared(
            f'<ir_version: 8, opset_import: ["" : {opset}]> m (float[3, 4, 5] x) => (float[3, 4, 5] y) <int64 axis = {{{axis}}}>'
            f"{{ y = CumSum <exclusive = {exclusive}, reverse = {reverse}> (x, axis) }}"
        )
        changed = expanded_copy(model)

        check(changed)
        assert "CumSum" not in ops(changed)
        np.testing.assert_allclose(run(changed, {"x": X})["y"], run(model, {"x": X})["y"], rtol=3e-6, atol=3e-6)

    def test_running_sum_after_an_infinity(self):
        """After an infinite first element a running sum is infinite, not NaN."""
        model = expanded_copy(prepared("m (float[3] x) => (float[3] y) <int64 axis = {0}> { y = CumSum(x, axis) }"))

        assert [np.inf] * 3 == run(model, {"x": np.float32([np.inf, 1, 2])})["y"].tolist()

    def test_running_sum_over_an_unknown_axis(self):
        """A CumSum whose axis is only known at run time is not expanded."""
        model = prepared("m (float[3] x, int64 axis) => (float[3] y) { y = CumSum(x, axis) }")
        feeds = {"x": np.float32([1, 2, 3]), "axis": np.array(0)}

        assert ["CumSum"] == ops(expanded_copy(model))
        assert [1.0, 3.0, 6.0] == run(expanded_copy(model), feeds)["y"].tolist()

    def test_a_mean_of_an_old_opset(self):
        """Before Where existed (opset 9), a mean is not expanded."""
        model = prepared('<ir_version: 3, opset_import: ["" : 7]> m (float[n] x) => (float[1] y) { y = ReduceMean(x) }')

        assert ["ReduceMean"] == ops(expanded_copy(model))

    def test_axes_that_are_inputs(self):
        """Axes that are only known at run time are passed on."""
        model = prepared("m (float[3, 4] x, int64[1] axes) => (float[?, ?] y) { y = ReduceMean(x, axes) }")
        feeds = {"x": X[0, :3, :4], "axes": np.array([1])}

        np.testing.assert_allclose(run(expanded_copy(model), feeds)["y"], run(model, feeds)["y"], rtol=3e-6)

    def test_mean_of_nothing(self):
        """The mean of no rows has no rows, without a division by zero."""
        model = prepared("m (float[n, 4] x) => (float[n, 1] y) <int64[1] last = {-1}> { y = ReduceMean(x, last) }")

        assert (0, 1) == run(expanded_copy(model), {"x": np.zeros((0, 4), np.float32)})["y"].shape

    def test_no_axes_may_mean_no_reduction(self):
        """With noop_with_empty_axes a mean over no axes is the tensor itself."""
        model = prepared("m (float[3, 4] x) => (float[3, 4] y) { y = ReduceMean <noop_with_empty_axes = 1> (x) }")

        np.testing.assert_array_equal(X[0, :3, :4], run(expanded_copy(model), {"x": X[0, :3, :4]})["y"])


class TestNames:
    """Nodes and names that the expansion leaves unchanged."""

    def test_only_requested_reductions_are_expanded(self):
        """Only the requested reductions are expanded."""
        source = "m (float[n] x) => (float y) { [one] a = ReduceMean(x) [two] b = ReduceL2(a) [three] y = ReduceMax <keepdims = 0> (b) }"
        model = spell_out(prepared(source), lambda node: node.name == "two")

        assert ["ReduceMean", "Mul", "ReduceSum", "Sqrt", "ReduceMax"] == ops(model)

    def test_new_nodes_name_their_origin(self):
        """Each new node names the node that it replaces, also in the body of a Scan."""
        model = expanded_copy(
            prepared("m (float[3] x) => (float[3] y) <int64 axis = {0}> { [it] y = CumSum(x, axis) }")
        )

        assert {"it"} == {node.metadata_props[ORIGIN] for node in model.graph.all_nodes()}

    def test_tensors_keep_their_names(self):
        """The result of an expanded node keeps its name."""
        model = expanded_copy(prepared("m (float[n] x) => (float[1] y) { a = ReduceMean(x) y = Exp(a) }"))

        assert "a" in {value.name for node in model.graph for value in node.outputs}
        assert ["y"] == [value.name for value in model.graph.outputs]

    def test_other_domains_are_not_expanded(self):
        """A ReduceMean of another domain is not expanded."""
        model = ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20, "mine" : 1]> m (float[n] x) => (float[1] y) { y = mine.ReduceMean(x) }'
        )

        assert ["ReduceMean"] == ops(expanded_copy(model))


class TestInHalf:
    """Rounding inside the expanded operators."""

    def test_sum_of_a_mean_overflows(self):
        """The mean of 4,096 times 100 is 100, but its sum, 409,600, overflows."""
        model = prepared(in_half("m (float[4096] x) => (float[1] y) { y = ReduceMean(x) }"))

        assert [np.inf] == in_half_of(model, np.full(4096, 100.0)).tolist()
        assert [15.0] == in_half_of(model, np.full(4096, 15.0)).tolist()

    def test_divisor_of_a_mean_overflows(self):
        """The divisor 131,072 overflows, so that the mean of that many small numbers is wrong."""
        model = prepared(in_half("m (float[131072] x) => (float[1] y) { y = ReduceMean(x) }"))

        assert [0.0] == in_half_of(model, np.full(131072, 0.25)).tolist()
        assert 1.0 != in_half_of(model, np.ones(131072)).item()

    @pytest.mark.parametrize("op", ["ReduceL2", "ReduceSumSquare"])
    def test_squares_overflow(self, op):
        """The square of 300 overflows before anything is summed."""
        model = prepared(in_half(f"m (float[4] x) => (float[1] y) {{ y = {op}(x) }}"))

        assert [np.inf] == in_half_of(model, np.full(4, 300.0)).tolist()

    def test_running_sum_stops(self):
        """A running sum of ones stops at 2,048, because 2,049 is not a half."""
        model = prepared(in_half("m (float[4096] x) => (float[4096] y) <int64 axis = {0}> { y = CumSum(x, axis) }"))

        sums = in_half_of(model, np.ones(4096))

        np.testing.assert_array_equal(np.minimum(np.arange(1, 4097), 2048), sums)

    def test_log_sum_exp_subtracts_the_maximum(self):
        """LogSumExp subtracts the maximum first, so that an exponential of 20 does not overflow."""
        model = prepared(in_half("m (float[4096] x) => (float[1] y) { y = ReduceLogSumExp(x) }"))
        x = np.zeros(4096)
        x[0] = 20

        assert [20.0] == in_half_of(model, x).tolist()

    def test_log_sum_exp_of_many_equal_terms_overflows(self):
        """The sum of 131,072 exponentials of zero overflows in half."""
        model = prepared(in_half("m (float[131072] x) => (float[1] y) { y = ReduceLogSumExp(x) }"))

        assert [np.inf] == in_half_of(model, np.full(131072, 3.0)).tolist()

    def test_hard_swish_rounds_its_gate(self):
        """HardSwish in half is a gate, rounded, and a product, rounded again."""
        model = prepared(in_half("m (float[n] x) => (float[n] y) { y = HardSwish(x) }"))
        x = np.linspace(-4, 4, 999, dtype=np.float16)
        wide = x.astype(np.float32)
        gate = np.clip(wide / 6 + 0.5, 0, 1).astype(np.float16)

        expected = (wide * gate).astype(np.float16)
        assert expected.tolist() == in_half_of(model, x).astype(np.float16).tolist()
        assert expected.tolist() != (wide * np.clip(wide / 6 + 0.5, 0, 1)).astype(np.float16).tolist()

    def test_without_kernels(self):
        """`kernels=False` rounds only the tensors between nodes."""
        model = prepared(in_half("m (float[4096] x) => (float[1] y) { y = ReduceMean(x) }"))
        x = np.full(4096, 100, np.float16)

        assert [100.0] == run(widen(model, kernels=False), {"x": x})["y"].tolist()
