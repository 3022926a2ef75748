"""Explanations of a half model: the node that causes the damage is named."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.bundles.bundle import open_bundle
from demi.calibration.explain.explanation import explain, explain_bundle
from demi.errors import BundleError, InferenceError, SampleError
from demi.exporter.operators import schemas
from demi.exporter.passes.lower import apply_plan
from demi.plan import Decision, Precision, Reason, make_plan
from tests.calibration.bundles import edit_model, export, force_half, scale_weight
from tests.models import BRANCHES, LOOP, MLP, OVERFLOW, prepared

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)

CANCEL = """
cancel (float[n] x) => (float[n] y)
<float thousand = {1000.0}, float two = {2.0}>
{
  [add] high = Add(x, thousand)
  [drop] low = Sub(high, thousand)
  [double] y = Mul(low, two)
}
"""
"""Add rounds away exactly the part that Sub leaves."""

EPSILON = """
epsilon (float[n] x) => (float[n] y)
<float eps = {1e-12}>
{
  [square] squared = Mul(x, x)
  [guard] safe = Add(squared, eps)
  [root] root = Sqrt(safe)
  [divide] y = Div(x, root)
}
"""

CHAIN = """
chain (float[n] x) => (float[n] y)
<float w = {0.7}>
{
  [m1] a = Mul(x, w) [m2] b = Mul(a, w) [m3] c = Mul(b, w) [m4] d = Mul(c, w)
  [m5] e = Mul(d, w) [m6] f = Mul(e, w) [m7] g = Mul(f, w) [m8] y = Mul(g, w)
}
"""

MASK = """
mask (float[n, 4] x) => (float[n, 4] y)
<float[4] low = {0.0, 0.0, 0.0, -1e9}>
{
  [hide] hidden = Add(x, low)
  [weigh] y = Softmax(hidden)
}
"""

INDEX = """
index (float[n] x, float[m, 2] table) => (float[n, 2] y)
<float one = {1.0}>
{
  [step] position = Sub(x, one)
  [whole] row = Cast <to = 7> (position)
  [look_up] y = Gather(table, row)
}
"""


INDEX_IN_A_BRANCH = """
inside (bool flag, float[n] x, float[m, 2] table) => (float[n, 2] y)
{
  [border] y = If (flag) <
    then_branch = take () => (float[n, 2] a) {
      [whole] row = Cast <to = 7> (x)
      [look_up] a = Gather(table, row)
    },
    else_branch = leave () => (float[n, 2] b) {
      [also] other = Cast <to = 7> (x)
      [look_at] b = Gather(table, other)
    }
  >
}
"""


def in_half(text, but=(), precision="fp16", masks=()):
    """Return the prepared model, the model with every possible node in half, and that plan."""
    model = prepared(text)
    half = ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.BFLOAT16
    decisions = [
        Decision(node.name, node.op_type, Precision.SINGLE if node.name in but else Precision.HALF, Reason.SAFE)
        for node in model.graph.all_nodes()
        if schemas.touches_float(node) and schemas.half_operands(node, schemas.opset_version(node, model), half)
    ]
    plan = make_plan(precision, decisions, masks)
    return model, apply_plan(model, plan).model, plan


def explanation_of(text, *feeds, budget=None, **how):
    """Explain a model with everything in half except the nodes in `but`."""
    model, mixed, plan = in_half(text, **how)
    return explain(model, mixed, feeds, budget or Budget(), plan)


def trace(explanation, name):
    """Return the trace of one node."""
    (found,) = (node for node in explanation.nodes if node.node == name)
    return found


class TestCulprit:
    """The node that breaks the outputs."""

    def test_overflow(self):
        """A node whose output exceeds the largest half is named, with its maximum and as the first non-finite one."""
        found = explanation_of(OVERFLOW, {"x": np.float32([1024.0, 3.0])})

        assert "grow" == found.first_non_finite
        assert (
            "`grow` (Mul) breaks the outputs: its output reaches 1.02e+05, beyond fp16's 65504; first non-finite value"
            == found.headline
        )

    def test_overflow_that_a_cast_makes(self):
        """If the node is in FP32 and its reader in half, the cast between them is named, with its reader."""
        found = explanation_of(OVERFLOW, {"x": np.float32([1024.0, 3.0])}, but=("grow",))

        assert found.headline.startswith("`big_to_fp16` (Cast, for `shrink`) breaks the outputs: its output")

    def test_nothing_overflows_in_bf16(self):
        """The same model does not overflow in BF16."""
        found = explanation_of(OVERFLOW, {"x": np.float32([1024.0, 3.0])}, precision="bf16")

        assert (None, ()) == (found.first_non_finite, found.culprits)

    def test_epsilon_that_vanishes(self):
        """A vanishing epsilon is named at the node that adds it, not where the infinity appears."""
        found = explanation_of(EPSILON, {"x": np.float32([0.0, 1.0, 2.0])})

        assert "divide" == found.first_non_finite
        assert ["guard"] == [culprit.node for culprit in found.culprits]
        assert "its constant `eps_fp16` is 0, where `eps` is 1e-12 in FP32" in found.headline

    def test_loss_that_is_magnified(self):
        """The node that rounds away needed digits is named, and so is the node that magnifies the error."""
        found = explanation_of(CANCEL, {"x": X[:, 0]})

        assert found.headline.startswith("`add` (Add) breaks the outputs: the rounding error of its output (")
        assert "is magnified: `drop` (Sub) turns it into" in found.headline
        assert trace(found, "add").leaves < 1e-3 < 1e-2 < trace(found, "drop").leaves
        assert trace(found, "drop").adds < 1e-3

    def test_nothing_is_rounded_inside_a_kernel(self):
        """Nodes that the target computes in one kernel lose nothing between them: here the sum is not rounded."""
        model, mixed, plan = in_half(CANCEL)
        fused = replace(plan, kernels={"add": "k", "drop": "k"})
        x = {"x": np.full(3, 0.3, np.float32)}

        apart, together = (explain(model, mixed, (x,), Budget(), each) for each in (plan, fused))

        assert ["add"] == [culprit.node for culprit in apart.culprits]
        assert [] == list(together.culprits)

    def test_two_culprits(self):
        """An overflow after a loss is named as well, in order."""
        source = CANCEL.replace("two = {2.0}", "two = {1e6}")
        found = explanation_of(source, {"x": X[:, 0]})

        assert ["add", "double"] == [culprit.node for culprit in found.culprits]
        assert found.culprits[0].sentence == found.headline

    def test_a_sum_of_small_errors(self):
        """If ordinary rounding exceeds the budget, no node is named, and the headline says so."""
        found = explanation_of(CHAIN, {"x": X[:, 0]}, budget=Budget(Limits(relative_l2=1e-6)))

        assert not found.comparison
        assert () == found.culprits
        assert found.headline.startswith("no node stands out: rounding errors add up to")
        assert "beyond its budget" in found.headline

    def test_nothing_differs(self):
        """Inputs that half represents exactly leave nothing to explain."""
        assert "nothing differs" in explanation_of(CANCEL, {"x": np.float32([1.0, 2.0])}).headline

    def test_masks_are_no_errors(self):
        """A mask of -1e9 that the plan clamps is equivalent to minus infinity."""
        found = explanation_of(MASK, {"x": X}, masks=("low",))

        assert () == found.culprits
        assert 1e-6 < trace(found, "hide").leaves < 1e-3

    def test_unlisted_mask(self):
        """A mask constant that the plan does not list is the first overflow."""
        assert "hide" == explanation_of(MASK, {"x": X}).first_non_finite


class TestTraces:
    """Errors of a node's inputs, its own, and of its outputs."""

    def test_a_node_in_fp32_adds_nothing(self):
        """A node in FP32 passes errors on and adds none."""
        found = trace(explanation_of(MLP, {"x": X}, but=("second",)), "second")

        assert ("single", True) == (found.precision, found.adds < 1e-6)
        assert 0 < found.enters
        assert 0 < found.leaves

    def test_errors_propagate(self):
        """The error of a node's output is the error of its reader's input."""
        found = explanation_of(MLP, {"x": X})

        assert trace(found, "first").leaves == trace(found, "bias").enters > 0
        assert ("first",) == trace(found, "bias").reads

    def test_exact_operators_add_nothing(self):
        """Relu of a half tensor rounds nothing."""
        assert 0 == trace(explanation_of(MLP, {"x": X}), "act").adds

    def test_order_of_execution(self):
        """Nodes are listed in the order of execution, casts included."""
        found = explanation_of(MLP, {"x": X})

        assert ["x_to_fp16", "first", "bias", "act", "second", "y_to_fp32"] == [node.node for node in found.nodes]
        assert [1, 2, 3, 4, 5, 6] == [node.position for node in found.nodes]

    @pytest.mark.parametrize(("x", "name"), [(20_000, "choose"), (40_000, "before")])
    def test_bodies_count_to_the_node_they_are_in(self, x, name):
        """An overflow inside a branch counts for the If node; one before it counts for its own node."""
        source = BRANCHES.replace("Add(outer, two)", "Mul(outer, two)")

        assert name == explanation_of(source, {"flag": np.array(True), "x": np.float32([x])}).first_non_finite

    def test_loops(self):
        """A loop and its body are traced as one node."""
        found = explanation_of(LOOP, {"x": X[:, 0]})

        assert {"before", "start_to_fp32"} == set(trace(found, "loop").reads)
        assert 0 < trace(found, "loop").leaves < 1e-3

    def test_worst_of_all_sets(self):
        """One set of inputs that overflows is sufficient."""
        small, large = {"x": np.float32([1.0, 2.1])}, {"x": np.float32([1024.0, 3.0])}

        assert explanation_of(OVERFLOW, small).first_non_finite is None
        assert "grow" == explanation_of(OVERFLOW, small, large).first_non_finite


class TestFailure:
    """A half model whose run fails."""

    FEEDS = {"x": np.float32([2051.0]), "table": np.ones((2051, 2), np.float32)}  # noqa: RUF012 - never changed

    def test_an_index_out_of_bounds(self):
        """The node at which the run fails is named, after the rounding that made its index wrong."""
        found = explanation_of(INDEX, self.FEEDS)

        assert ("look_up", 5) == (found.failure.node, found.failure.position)
        assert ["x_to_fp16"] == [culprit.node for culprit in found.culprits]
        assert (
            "`look_up` (Gather) fails in half: indices element out of data bounds, idx=2052 must be within the inclusive range"
            in found.lines[-1]
        )
        assert "--keep-fp32" in found.lines[-1]

    def test_a_failed_run_is_over_any_budget(self):
        """A run that fails is over any budget."""
        found = explanation_of(INDEX, self.FEEDS, budget=Budget(Limits(relative_l2=1e9)))

        assert not found.comparison
        assert 2 == found.comparison.outputs[0].non_finite

    def test_nodes_before_the_failure_are_compared(self):
        """Nodes before the failure have their errors, the failing node has that of its inputs, and later nodes have none."""
        found = explanation_of(
            INDEX.replace("y = Gather(table, row)", "taken = Gather(table, row) [act] y = Relu(taken)"), self.FEEDS
        )

        assert 0 < trace(found, "step").leaves < 1e-3
        assert 0 < trace(found, "look_up").enters
        assert (None, None) == (trace(found, "look_up").leaves, trace(found, "act").leaves)
        assert ["x_to_fp16", "step", "whole", "look_up"] == [node.node for node in found.most_relevant(12)]

    def test_a_later_failure_is_not_the_first(self):
        """Of two nodes that fail, the first in execution order is named."""
        two = INDEX.replace(
            "y = Gather(table, row)", "a = Gather(table, row) [again] b = Gather(table, row) [sum] y = Add(a, b)"
        )

        assert "look_up" == explanation_of(two, self.FEEDS).failure.node

    def test_a_failure_inside_a_body(self):
        """A failure of a node in a branch counts for the node that holds the branch."""
        feeds = {"flag": np.array(True), "x": np.float32([2051.0]), "table": np.ones((2052, 2), np.float32)}

        assert "border" == explanation_of(INDEX_IN_A_BRANCH, feeds).failure.node

    def test_inputs_that_fp32_fails_on(self):
        """Inputs on which FP32 fails raise an error that says so."""
        with pytest.raises(InferenceError, match="the FP32 reference fails on these inputs"):
            explanation_of(INDEX, {"x": np.float32([9.0]), "table": np.ones((3, 2), np.float32)})


class TestBundles:
    """Bundles on disk, intact and damaged."""

    def test_intact(self, tmp_path):
        """An intact bundle has no culprit; its nodes have the plan's reasons."""
        found = explain_bundle(open_bundle(export(tmp_path)))

        assert found.headline.startswith("no node stands out: rounding errors add up to")
        assert ["", "safe", "safe", "safe", "safe", ""] == [node.reason for node in found.nodes]

    @pytest.mark.parametrize(("weight", "node"), [("w1_fp16", "first"), ("b1_fp16", "bias"), ("w2_fp16", "second")])
    def test_changed_weight(self, tmp_path, weight, node):
        """If one element of a weight is changed, the node that reads it is named with the weight."""
        bundle = export(tmp_path)
        edit_model(bundle, scale_weight(weight, 50))
        found = explain_bundle(open_bundle(bundle))

        assert node == found.culprits[0].node
        assert f"its weight `{weight}` differs from the reference's `{weight.removesuffix('_fp16')}`" in found.headline

    def test_edited_plan(self, tmp_path):
        """An overflowing node that an edited plan forces to half is named, with its original reason."""
        bundle = export(tmp_path, OVERFLOW, inputs={"x": np.float32([1024.0, 3.0])})
        force_half(bundle)
        found = explain_bundle(open_bundle(bundle))

        assert found.headline.startswith("`grow` (Mul) breaks the outputs: its output reaches 1.02e+05")
        assert ("overflow", "max 102,400 on `big`") == (trace(found, "grow").reason, trace(found, "grow").evidence)

    def test_given_inputs(self, tmp_path):
        """Other inputs than the golden ones can be passed."""
        found = explain_bundle(open_bundle(export(tmp_path)), [{"x": X * 1e5}], "mine.npz")

        assert "mine.npz" == found.origin
        assert "x_to_fp16" == found.first_non_finite

    def test_inputs_that_do_not_fit(self, tmp_path):
        """Inputs of another model raise an error."""
        with pytest.raises(SampleError, match="`x`"):
            explain_bundle(open_bundle(export(tmp_path)), [{"x": X[:, :3]}], "mine.npz")

    def test_without_a_reference(self, tmp_path):
        """Without a reference there is nothing to compare with, which is an error."""
        with pytest.raises(BundleError, match="no FP32 reference") as caught:
            explain_bundle(open_bundle(export(tmp_path, reference=False)))
        assert "--no-reference" in caught.value.hint


class TestRescaled:
    """Bundles whose half model has other scales inside than its reference."""

    def test_tensors_are_compared_in_one_scale(self, tmp_path):
        """No node stands out, though its tensors are a power of two times the reference's."""
        bundle = open_bundle(export(tmp_path, OVERFLOW, inputs={"x": np.float32([1024.0, 3.0])}, rescale=True))

        found = explain_bundle(bundle)

        assert bundle.manifest.rescaled
        assert found.first_non_finite is None
        assert [True] * len(found.nodes) == [node.leaves < 1e-3 for node in found.nodes]
