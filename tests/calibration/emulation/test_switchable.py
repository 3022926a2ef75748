"""The switchable emulator: one session that emulates any subset of half nodes, with the results of static emulation."""

import itertools

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demi.calibration.emulation.switchable import Emulator
from demi.calibration.emulation.switches import input_source
from demi.calibration.emulation.widen import rounding_casts
from demi.errors import InferenceError
from demi.float16 import BF16, FP16, round_through
from tests.exporter.passes.test_lower_properties import FEEDS, graphs
from tests.exporter.planning.helpers import emulated, emulator, floats, operands
from tests.models import (
    BRANCHES,
    LAYER_NORM,
    LOOP,
    MLP,
    RMS_NORM,
    SCAN,
    prepared,
    run,
    text,
)

DIAMOND = """
diamond (float[n, 4] x) => (float[n, 4] y, float[n, 4] b)
<float[4] scale = {0.1, 0.2, 0.3, 0.7}, float third = {0.333333}>
{
  [top] a = Mul(x, scale)
  [left] b = Mul(a, third)
  [right] c = Add(a, scale)
  [same] d = Relu(c)
  [bottom] y = Add(b, d)
}
"""
"""A weight with two readers, a tensor with two readers, and an output that is read inside as well."""

CONSTANTS = """
constants (float[n, 4] x, int64[n] rows) => (float[n, 4] y)
<float[3, 4] table = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3}, int64[2] shape = {1, 4}>
{
  [look_up] picked = Gather(table, rows)
  [fill] tenth = ConstantOfShape <value: tensor = float[1] {0.1}> (shape)
  [shift] shifted = Add(picked, tenth)
  [count] counts = Cast <to = 1> (rows)
  [column] column = Unsqueeze(counts, one)
  [scale] scaled = Mul(shifted, column)
  [apply] y = Sub(x, scaled)
}
""".replace("int64[2] shape", "int64[1] one = {1}, int64[2] shape")
"""A table, a typed constant and a cast from integers."""

X = floats(3, 4, seed=3)
EXACT = {
    "diamond": (DIAMOND, {"x": X}),
    "constants": (CONSTANTS, {"x": X, "rows": np.array([0, 2, 1])}),
    "branches": (BRANCHES, {"x": X[0], "flag": np.array(True)}),
    "other branch": (BRANCHES, {"x": X[0], "flag": np.array(False)}),
    "loop": (LOOP, {"x": X[0]}),
    "scan": (SCAN, {"x": X[:, :2].copy()}),
}
"""Models without sums: both ways compute the same operations in the same order."""
SUMS = {"mlp": (MLP, {"x": X}), "layer norm": (LAYER_NORM, {"x": X}), "rms norm": (RMS_NORM, {"x": X})}
ALL = EXACT | SUMS

relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def emulators():
    """Return an emulator for each model and format, created on first use."""
    made = {}

    def get(name, fmt):
        if (name, fmt.name) not in made:
            made[name, fmt.name] = emulator(prepared(ALL[name][0]), fmt)
        return made[name, fmt.name]

    yield get
    for each in made.values():
        each.__exit__()


class TestNothingHalf:
    """With no node in half, the emulator is the FP32 model."""

    @pytest.mark.parametrize("name", EXACT)
    def test_equals_fp32(self, emulators, name):
        """With no node in half, outputs equal those of FP32 bit for bit."""
        source, feeds = EXACT[name]
        want = run(prepared(source), feeds)

        got = emulators(name, FP16).run(frozenset(), feeds)

        assert list(want) == list(got)
        for output in want:
            np.testing.assert_array_equal(want[output].view(np.uint32), got[output].view(np.uint32))

    @pytest.mark.parametrize("name", SUMS)
    def test_equals_fp32_with_sums(self, emulators, name):
        """With expanded reductions, outputs equal those of FP32 except for the order of summation."""
        source, feeds = SUMS[name]

        got = emulators(name, FP16).run(frozenset(), feeds)

        np.testing.assert_allclose(got["y"], run(prepared(source), feeds)["y"], rtol=1e-5, atol=1e-6)

    def test_the_model_is_not_changed(self):
        """The prepared model is not changed."""
        model = prepared(LAYER_NORM)
        before = text(model)

        with emulator(model):
            assert before == text(model)


@relaxed
@given(st.sampled_from(sorted(EXACT)), st.sampled_from([FP16, BF16]), st.data())
def test_any_subset_equals_the_static_way(emulators, name, fmt, data):
    """For any subset, the outputs equal those of the lowered and widened model bit for bit."""
    source, feeds = EXACT[name]
    model = prepared(source)
    half = data.draw(st.sets(st.sampled_from(sorted(operands(model, fmt)))))

    want, got = emulated(model, half, feeds, fmt), emulators(name, fmt).run(half, feeds)

    for output in want:
        np.testing.assert_array_equal(want[output].view(np.uint32), got[output].view(np.uint32))


@relaxed
@given(st.sampled_from(sorted(SUMS)), st.data())
def test_any_subset_of_a_model_with_sums(emulators, name, data):
    """With sums in another order, outputs agree to a single half rounding, and almost always to 1e-6."""
    source, feeds = SUMS[name]
    model = prepared(source)
    half = data.draw(st.sets(st.sampled_from(sorted(operands(model)))))

    want, got = emulated(model, half, feeds)["y"], emulators(name, FP16).run(half, feeds)["y"]

    np.testing.assert_allclose(got, want, rtol=1e-6 if name == "mlp" else 2e-3, atol=1e-6)


@relaxed
@given(graphs(), st.data())
def test_any_subset_of_any_graph(source, data):
    """Random graphs with branches, shared weights and several outputs agree to the rounding of a matrix product."""
    model = prepared(source)
    half = data.draw(st.sets(st.sampled_from(sorted(operands(model)) or ["none"])))
    want = emulated(model, half, FEEDS)

    with emulator(model) as each:
        got = each.run(half, FEEDS)

    for output in want:
        np.testing.assert_allclose(got[output], want[output], rtol=2e-3, atol=1e-6)


class TestSwitches:
    """The tensors that are rounded, and the readers that see it."""

    def test_a_weight_is_rounded_for_the_reader_that_is_half(self, emulators):
        """Of two nodes that share a weight, only the half one reads it rounded."""
        feeds = {"x": np.zeros((1, 4), np.float32)}
        scale = np.float32([0.1, 0.2, 0.3, 0.7])
        each = emulators("diamond", FP16)

        np.testing.assert_array_equal([scale], each.run({"left"}, feeds)["y"])
        np.testing.assert_array_equal([round_through(scale, FP16)], each.run({"right"}, feeds)["y"])

    def test_an_output_has_its_producers_precision(self, emulators):
        """An output that other nodes read is rounded when its producer is half, not when a reader is."""
        feeds = {"x": X}
        plain = run(prepared(DIAMOND), feeds)["b"]
        each = emulators("diamond", FP16)

        np.testing.assert_array_equal(plain, each.run({"bottom", "right"}, feeds)["b"])
        got = each.run({"left"}, feeds)["b"]
        np.testing.assert_array_equal(round_through(got, FP16), got)

    def test_names_of_outputs_are_kept(self, emulators):
        """Outputs keep their names and order."""
        assert ["y", "b"] == list(emulators("diamond", FP16).run({"left", "bottom"}, {"x": X}))

    def test_replacement_of_a_weight(self):
        """A half reader reads a clamped mask constant as its replacement."""
        model = prepared("m (float[n] x) => (float[n] y) <float low = {-1e9}> { [add] y = Add(x, low) }")
        with Emulator(model, operands(model), FP16, {"low": np.float32(-30000)}) as each:
            feeds = {"x": np.float32([0])}

            assert [-1e9] == each.run(frozenset(), feeds)["y"].tolist()
            assert [-30000.0] == each.run({"add"}, feeds)["y"].tolist()

    @pytest.mark.parametrize("at_once", [1, 2, 3])
    def test_several_runs(self, at_once):
        """Runs side by side have the results of single runs, in order; a run that fails yields its error."""
        model = prepared(CONSTANTS)
        good, bad = ({"x": X[:1], "rows": np.array([row])} for row in (1, 7))
        runs = [({"scale", "apply"}, good), (frozenset(), bad), (frozenset(), good), ({"shift"}, good)]
        with Emulator(model, operands(model), FP16, at_once=at_once) as each:
            first, failed, *others = each.run_each(runs)

            assert isinstance(failed, InferenceError)
            for (half, feeds), got in zip([runs[0], *runs[2:]], [first, *others], strict=True):
                np.testing.assert_array_equal(each.run(half, feeds)["y"], got["y"])

    def test_a_model_without_floats(self):
        """A model without float nodes has no switches."""
        model = prepared("m (int64[n] x) => (int64[n] y) { y = Add(x, x) }")
        with emulator(model) as each:
            assert [2, 4] == each.run(frozenset(), {"x": np.array([1, 2])})["y"].tolist()

    def test_the_runtime_keeps_every_rounding(self, tmp_path):
        """The graph that ONNX Runtime runs after its optimizations has as many casts to half as the emulator wrote."""
        model = prepared(LAYER_NORM)
        with emulator(model) as each:
            built = each._builder.model
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(text(built), options, providers=["CPUExecutionProvider"])

        assert rounding_casts(built) >= 8
        assert rounding_casts(built) == rounding_casts(ir.load(tmp_path / "optimized.onnx"))


class TestStores:
    """`stores=True`: nodes round their results, not their operands."""

    def test_results_are_rounded_for_every_reader(self, emulators):
        """A node's result is rounded where it is computed, also for single readers."""
        feeds = {"x": X}
        scale = np.float32([0.1, 0.2, 0.3, 0.7])
        kept = round_through(X * round_through(scale, FP16), FP16)

        got = emulators("diamond", FP16).run({"top"}, feeds, stores=True)["b"]

        np.testing.assert_array_equal(kept * np.float32(0.333333), got)

    def test_operands_are_not_rounded(self, emulators):
        """An operand of a half node is not rounded; that loss counts for its producer or its cast."""
        feeds = {"x": X}
        a = X * np.float32([0.1, 0.2, 0.3, 0.7])
        third = round_through(np.float32(0.333333), FP16)

        got = emulators("diamond", FP16).run({"left"}, feeds, stores=True)["b"]

        np.testing.assert_array_equal(round_through(a * third, FP16), got)

    def test_graph_inputs_are_rounded_by_name(self, emulators):
        """A graph input is rounded for all readers if it is named."""
        want = run(prepared(DIAMOND), {"x": round_through(X, FP16)})["y"]

        got = emulators("diamond", FP16).run({input_source("x")}, {"x": X}, stores=True)["y"]

        np.testing.assert_array_equal(want, got)

    def test_single_readers_see_graph_inputs_unrounded(self):
        """A graph input is rounded by a cast, so that single readers see it unrounded."""
        model = prepared("m (float[n] x) => (float[n] a, float[n] b) { [one] a = Neg(x) [two] b = Abs(x) }")
        with emulator(model) as each:
            each.hold({"one"})
            got = each.run({input_source("x")}, {"x": X[0]}, stores=True)

        np.testing.assert_array_equal(-X[0], got["a"])
        np.testing.assert_array_equal(round_through(np.abs(X[0]), FP16), got["b"])

    def test_exact_operators_add_no_rounding(self, emulators):
        """Exact operators such as Relu add no rounding."""
        plain = run(prepared(DIAMOND), {"x": X})["y"]

        np.testing.assert_array_equal(plain, emulators("diamond", FP16).run({"same"}, {"x": X}, stores=True)["y"])


class TestRead:
    """Intermediate tensors, as they are stored."""

    def read(self, each, half, feeds, names):
        """Return the requested intermediate tensors of all chunks."""
        return {
            name: array
            for chunk in each.chunks(names)
            for name, array in each.read(frozenset(half), feeds, chunk).items()
        }

    def test_a_half_result_reads_as_its_readers_see_it(self, emulators):
        """The result of a half node is rounded, and no other tensor is."""
        plain = X * np.float32([0.1, 0.2, 0.3, 0.7])
        each = emulators("diamond", FP16)

        np.testing.assert_array_equal(plain, self.read(each, (), {"x": X}, ["a"])["a"])
        np.testing.assert_array_equal(plain, self.read(each, {"left"}, {"x": X}, ["a"])["a"])
        half = self.read(each, {"top"}, {"x": X}, ["a"])["a"]
        np.testing.assert_array_equal(round_through(half, FP16), half)

    def test_outputs_are_read_as_returned(self, emulators):
        """An intermediate tensor that is also an output has the same values both ways."""
        each = emulators("diamond", FP16)
        for count in range(3):
            for half in itertools.combinations(["top", "left", "bottom"], count):
                answers, inner = each.run(set(half), {"x": X}), self.read(each, half, {"x": X}, ["b", "y"])
                np.testing.assert_array_equal(answers["b"], inner["b"])
                np.testing.assert_array_equal(answers["y"], inner["y"])

    def test_names_inside_subgraphs_are_omitted(self, emulators):
        """Tensors inside a subgraph cannot be read."""
        assert {"start"} == set(self.read(emulators("loop", FP16), (), EXACT["loop"][1], ["start", "grown"]))

    def test_overflow_is_read_at_its_node(self):
        """102,400 is infinite where it is computed, and the tensor before it is finite."""
        model = prepared(
            "m (float[n] x) => (float[n] y) <float hundred = {100.0}, float small = {0.001}>"
            "{ [grow] big = Mul(x, hundred) [shrink] y = Mul(big, small) }"
        )
        feeds = {"x": np.float32([1024])}
        with emulator(model) as each:
            assert [np.inf] == self.read(each, {"grow"}, feeds, ["big"])["big"].tolist()
            assert [102400.0] == self.read(each, {"shrink"}, feeds, ["big"])["big"].tolist()
            assert [np.inf] == each.run({"shrink"}, feeds)["y"].tolist()
