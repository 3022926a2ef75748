"""`exporter.convert`: a model in, a mixed model within its budget out, or an error that says why not."""

import functools
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.calibration.emulation.widen import widen
from demi.errors import ConversionError, InputError, OverBudgetError, SampleError
from demi.exporter import convert
from demi.plan import Precision, Reason, make_plan
from tests.exporter.planning.helpers import floats
from tests.exporter.planning.shapes import SHAPES, wide
from tests.models import (
    BRANCHES,
    EMBEDDING,
    LAYER_NORM,
    LOOP,
    MLP,
    OVERFLOW,
    RMS_NORM,
    SCAN,
    parse,
    run,
)

X = {"x": floats(8, 4)}
BIG = {"x": np.float32([1024.0, 1.0])}

PICK = """
pick (float[n, 3] x) => (int64[n] y, float[n, 3] z)
<float k = {1.1}>
{ [scale] s = Mul(x, k) [pick] y = ArgMax <axis = 1, keepdims = 0> (s) [act] z = Tanh(x) }
"""


def proto(source):
    """A model in text as a ModelProto."""
    return ir.to_proto(parse(source))


def half_of(converted):
    """The names of the half nodes."""
    return {name for name, decision in converted.plan.decisions.items() if decision.is_half}


class TestResult:
    """The result of a conversion."""

    @pytest.mark.parametrize(
        ("source", "feeds"),
        [
            (MLP, X),
            (LAYER_NORM, X),
            (RMS_NORM, X),
            (OVERFLOW, BIG),
            (EMBEDDING, {"input_ids": np.array([[0, 4]]), "attention_mask": np.array([[1, 1]])}),
            (BRANCHES, {"x": floats(3), "flag": np.array(True)}),
            (LOOP, {"x": floats(3)}),
            (SCAN, {"x": floats(5, 2)}),
        ],
        ids=["mlp", "layer norm", "rms norm", "overflow", "embedding", "branches", "loop", "scan"],
    )
    def test_valid_and_within_budget(self, source, feeds):
        """The checker passes it, it looks the same from outside, and it answers as FP32 does."""
        model = proto(source)

        converted = convert(model, [feeds])

        onnx.checker.check_model(converted.model, full_check=True)
        assert model.graph.input == converted.model.graph.input
        assert [value.name for value in model.graph.output] == [value.name for value in converted.model.graph.output]
        assert converted.comparison
        want = run(parse(source), feeds)
        for name, array in run(widen(ir.from_proto(converted.model)), feeds).items():
            np.testing.assert_allclose(array, want[name], rtol=2e-2, atol=1e-2)

    def test_the_argument_is_left_alone(self):
        """The model that was given is the same afterwards, byte for byte; so are the samples."""
        model, feeds = proto(LAYER_NORM), {"x": X["x"].copy()}
        before = model.SerializeToString(deterministic=True)

        convert(model, [feeds])

        assert before == model.SerializeToString(deterministic=True)
        np.testing.assert_array_equal(X["x"], feeds["x"])

    @pytest.mark.parametrize("name", ["mlp", "attention"])
    def test_deterministic(self, name):
        """The same model, samples and seed give the same plan and the same bytes."""
        hard = SHAPES[name]()
        one, other = (convert(hard.model, hard.calibration) for _ in range(2))

        assert one.plan == other.plan
        assert one.plan.to_json() == other.plan.to_json()
        assert one.model.SerializeToString(deterministic=True) == other.model.SerializeToString(deterministic=True)

    @pytest.mark.parametrize("name", SHAPES)
    def test_prediction_holds(self, name):
        """The predicted error is within 25% of the emulated one."""
        hard = SHAPES[name]()

        converted = convert(hard.model, hard.calibration)

        for diff in converted.comparison.outputs:
            assert pytest.approx(diff.relative_l2, rel=0.25) == converted.planned.predicted[diff.output]

    def test_float_samples_of_another_width(self):
        """float64 samples, lists and scalars are as good as float32 arrays."""
        assert 4 == convert(proto(MLP), [{"x": X["x"].astype(np.float64)}]).plan.half_nodes
        assert 4 == convert(proto(MLP), [{"x": X["x"].tolist()}]).plan.half_nodes
        assert convert(proto("m (float x) => (float y) { y = Tanh(x) }"), [{"x": np.float32(0.5)}]).comparison


class TestSamples:
    """The samples of a conversion."""

    def test_without_samples(self):
        """Inputs are drawn, ids within their tables among them."""
        assert convert(proto(EMBEDDING)).comparison
        assert 4 == convert(proto(MLP)).comparison.samples

    def test_drawn_by_seed(self):
        """The seed decides what is drawn, and nothing else does."""
        errors = [convert(proto(MLP), seed=seed).comparison.worst.relative_l2 for seed in (0, 0, 1)]

        assert errors[0] == errors[1] != errors[2]

    def test_samples_that_do_not_fit(self):
        """A missing input is named."""
        with pytest.raises(SampleError, match="`x` is missing"):
            convert(proto(MLP), [{"z": np.zeros(3)}])

    def test_a_plan_that_fails_on_later_sets_is_sought_again(self):
        """Trials run on the first sets; when a later one fails, it comes first in the next search."""
        easy = [{"x": np.float32([[0, 1, 2]])} for _ in range(6)]
        close = {"x": np.float32([[0, 1.0, 1.00003]])}

        assert {"scale", "pick"} == half_of(convert(proto(PICK), easy))
        converted = convert(proto(PICK), [*easy, close])

        assert converted.comparison
        assert set() == half_of(converted)
        assert Reason.SELECTION is converted.plan["scale"].reason


@functools.cache
def within(limits):
    """A wide network for one budget."""
    hard = wide()
    return convert(hard.model, hard.calibration, budget=Budget(limits))


class TestBudget:
    """The budget decides how much is half."""

    def test_a_tight_budget_keeps_more_in_fp32(self):
        """The tighter the budget, the fewer nodes are half; each plan is within its own."""
        counts = []
        for limit in (1e-2, 8e-4, 3e-4, 1e-5):
            converted = within(Limits(relative_l2=limit))
            counts.append(converted.plan.half_nodes)
            assert converted.comparison.worst.relative_l2 <= limit

        assert sorted(counts, reverse=True) == counts
        assert counts[0] > counts[1] > counts[-1]

    def test_what_was_given_up_says_so(self):
        """Nodes that stay single for the budget have that reason, and their sensitivity as evidence."""
        plan = within(Limits(relative_l2=8e-4)).plan
        given_up = [decision for decision in plan.decisions.values() if decision.reason is Reason.SENSITIVE]

        assert given_up
        assert all("of the budget" in decision.evidence for decision in given_up)

    @pytest.mark.parametrize(
        "limits",
        [Limits(max_abs=4e-3), Limits(cosine=1 - 5e-7), Limits(top1=1.0), Limits(relative_l2=1e-2, max_abs=2e-3)],
        ids=["max_abs", "cosine", "top1", "two limits"],
    )
    def test_every_limit_is_kept(self, limits):
        """The plan is within the limit, for each kind of limit."""
        assert within(limits).comparison

    def test_a_limit_far_below_what_everything_in_half_gives(self):
        """A largest difference a hundred times smaller is met by what adds little, not given up."""
        source = "m (float[n, 4] x, float[n, 4] fine) => (float[n, 4] y) <float k = {0.00123}, float third = {0.3333}> { [a] u = Mul(x, third) [b] v = Mul(fine, k) [c] w = Tanh(v) [d] y = Add(u, w) }"
        feeds = {"x": floats(64, 4), "fine": floats(64, 4, seed=1)}
        converted = convert(proto(source), [feeds], budget=Budget(Limits(max_abs=2e-6)))

        assert converted.comparison
        assert not converted.plan.is_half("d")

    def test_limits_by_output(self):
        """A tight limit for one output leaves the other in half."""
        source = """
        two (float[64, 64] x, float[64, 64] other) => (float[64, 64] y, float[64, 64] z)
        { [c] y = MatMul(x, x) [f] z = MatMul(other, other) }
        """
        budget = Budget(outputs={"z": Limits(relative_l2=1e-6)})

        converted = convert(proto(source), [{"x": floats(64, 64), "other": floats(64, 64, seed=1)}], budget=budget)

        assert converted.comparison
        assert not converted.plan.is_half("f")
        assert converted.plan.is_half("c")

    def test_limits_for_an_output_that_is_not_there(self):
        """An unknown output's limit is an error."""
        with pytest.raises(InputError, match="output `nope`"):
            convert(proto(MLP), [X], budget=Budget(outputs={"nope": Limits()}))

    def test_bf16(self):
        """BF16 has eight bits of fraction: an MLP is within a budget that allows for that."""
        hard = SHAPES["mlp"]()

        converted = convert(hard.model, hard.calibration, precision="bf16")

        assert converted.comparison
        assert "bf16" == converted.plan.precision
        assert converted.plan.half_nodes == len(converted.plan.decisions)

    def test_forced_over_the_budget(self):
        """A forced node that breaks the model is an error with the output, the limit and the first divergence."""
        with pytest.raises(OverBudgetError) as caught:
            convert(proto(OVERFLOW), [BIG], force_half=["*"], rescale=False)

        lines = str(caught.value)
        assert "`y`: 1 of 2 elements are NaN or infinite where FP32 is not" in lines
        assert "NaN or infinity first arises on `big`, made by Mul `grow`" in lines
        assert "2 of 2 float nodes in fp16" in lines
        assert "--keep-fp32" in caught.value.hint

    def test_exit_code(self):
        """Over budget is 1, for CI."""
        assert 1 == OverBudgetError.exit_code


class TestPlan:
    """A plan that is given is carried out."""

    def edited(self, plan, **precisions):
        """A plan with some nodes set by hand."""
        decisions = {
            name: replace(decision, precision=precisions.get(name, decision.precision))
            for name, decision in plan.decisions.items()
        }
        return make_plan(plan.precision, decisions.values(), plan.masks)

    def test_edited_by_hand(self):
        """An edited plan is used as it is, whatever the search would have found."""
        first = convert(proto(MLP), [X])
        plan = self.edited(first.plan, bias=Precision.SINGLE)

        second = convert(proto(MLP), [X], plan=plan)

        assert {"first", "act", "second"} == half_of(second)
        assert plan == second.plan
        assert second.casts > first.casts

    def test_over_the_budget(self):
        """A plan that breaks the model is an error, not a model."""
        plan = self.edited(
            convert(proto(OVERFLOW), [BIG], rescale=False).plan, grow=Precision.HALF, shrink=Precision.HALF
        )

        with pytest.raises(OverBudgetError, match="`y`: 1 of 2 elements"):
            convert(proto(OVERFLOW), [BIG], plan=plan, rescale=False)

    def test_impossible(self):
        """A plan with an impossible half node is refused, and the node named."""
        feeds = {"x": floats(3), "flag": np.array(True)}
        plan = self.edited(convert(proto(BRANCHES), [feeds]).plan, choose=Precision.HALF)

        with pytest.raises(ConversionError, match="the plan has `choose` in half"):
            convert(proto(BRANCHES), [feeds], plan=plan)

    def test_of_another_model(self):
        """A plan whose nodes the model does not have is refused: it would leave everything in FP32 in silence."""
        plan = convert(proto(OVERFLOW), [BIG]).plan

        with pytest.raises(InputError, match="the plan names `grow`, which the model does not have") as caught:
            convert(proto(MLP), [X], plan=plan)

        assert "demi calibrate" in caught.value.hint

    def test_of_another_precision(self):
        """A BF16 plan is not carried out as FP16."""
        plan = replace(convert(proto(MLP), [X]).plan, precision="bf16")

        with pytest.raises(InputError, match="the plan is for bf16"):
            convert(proto(MLP), [X], plan=plan)

    def test_without_running_anything(self):
        """With `verify=False` a plan of another model is refused as well."""
        plan = convert(proto(OVERFLOW), [BIG]).plan

        with pytest.raises(InputError, match="which the model does not have"):
            convert(proto(MLP), plan=plan, verify=False)


class TestOptions:
    """The other ways to ask."""

    def test_half_io(self):
        """Without `keep_io_types` float inputs and outputs are half, and casts at the border are gone."""
        kept, changed = (convert(proto(MLP), [X], keep_io_types=keep) for keep in (True, False))

        types = {
            value.type.tensor_type.elem_type for value in (*changed.model.graph.input, *changed.model.graph.output)
        }
        assert {onnx.TensorProto.FLOAT16} == types
        assert (2, 0) == (kept.casts, changed.casts)

    def test_keep_fp32(self):
        """A pattern keeps its nodes."""
        plan = convert(proto(MLP), [X], keep_fp32=["MatMul"]).plan

        pinned = {name for name, decision in plan.decisions.items() if decision.reason is Reason.PINNED}
        assert {"first", "second"} == pinned

    def test_without_calibration(self):
        """The operator list decides; the result is verified all the same."""
        source = "m (float[n, 4] x) => (float[n, 4] y) { [it] a = Exp(x) [after] y = Tanh(a) }"
        converted = convert(proto(source), [X], calibrate=False)

        assert converted.comparison
        assert Reason.EXPONENTIAL is converted.plan["it"].reason
        with pytest.raises(OverBudgetError):
            convert(proto(OVERFLOW), [BIG], calibrate=False)

    def test_unknown_precision(self):
        """fp16 and bf16 are all there is."""
        with pytest.raises(InputError, match="unknown precision `fp8`"):
            convert(proto(MLP), [X], precision="fp8")


class TestNothingToDo:
    """Models that half has nothing to offer convert to themselves."""

    @pytest.mark.parametrize(
        ("source", "feeds"),
        [
            ("ids (int64[n] x) => (int64[n] y) { y = Add(x, x) }", {"x": np.array([1, 2])}),
            ("same (float[n] x) => (float[n] x) { }", {"x": np.float32([0.1, 2])}),
            ("flags (bool[n] x) => (bool[n] y) { y = Not(x) }", {"x": np.array([True])}),
            ("doubles (double[n] x) => (double[n] y) { y = Exp(x) }", {"x": np.array([0.1])}),
            ("halves (float16[n] x) => (float16[n] y) { y = Neg(x) }", {"x": np.float16([0.1])}),
        ],
        ids=["integers", "no nodes", "booleans", "doubles", "half already"],
    )
    def test_converts_to_itself(self, source, feeds):
        """No decision, no cast, the same answers."""
        converted = convert(proto(source), [feeds])

        assert {} == converted.plan.decisions
        assert converted.casts == 0
        assert converted.comparison
        assert [node.op_type for node in proto(source).graph.node] == [
            node.op_type for node in converted.model.graph.node
        ]

    def test_a_constant_output(self):
        """A weight that is an output stays what it is."""
        source = "m (float[n] x) => (float[n] y, float[2] w) <float[2] w = {0.1, 0.2}> { y = Tanh(x) }"
        try:
            converted = convert(proto(source), [{"x": floats(3)}])
        except onnx.checker.ValidationError:
            pytest.skip("ONNX takes no initializer for an output")

        assert converted.comparison
