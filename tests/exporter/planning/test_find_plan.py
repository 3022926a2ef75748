"""Find a plan: from a prepared model and samples to decisions with reasons."""

import contextlib

import numpy as np
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.errors import ConversionError, InputError
from demi.exporter.planning.find_plan import Fp32Share, PlanSettings, find_plan
from demi.exporter.planning.op_list import op_list_plan
from demi.float16 import FP16
from demi.plan import Precision, Reason
from tests.exporter.planning.helpers import floats, listed, samples
from tests.models import BRANCHES, LAYER_NORM, MLP, OVERFLOW, prepared, text


def found(source, *feeds, **settings):
    """Return the plan of a model text."""
    return find_plan(prepared(source), samples(*feeds), PlanSettings(**settings))


X = {"x": floats(8, 4)}
BIG = {"x": np.float32([1024.0, 1.0])}


class TestPlan:
    """The plan with the measurements behind it."""

    def test_mlp_is_half(self):
        """A harmless model is half throughout; shares of the predicted error add up to one."""
        planned = found(MLP, X)

        assert {Reason.SAFE} == {decision.reason for decision in planned.plan.decisions.values()}
        assert 1.0 == pytest.approx(sum(decision.share for decision in planned.plan.decisions.values()))
        assert Fp32Share(flops=0.0, tensor_bytes=0.0) == planned.fp32_share
        assert planned.first_divergence is None
        assert 0 < planned.predicted["y"] < 1e-2
        assert planned.trials > 0

    def test_every_float_node_has_a_decision(self):
        """Decisions are in the order of the graph, nodes in branches included."""
        planned = found(BRANCHES, {"x": floats(3), "flag": np.array(True)})

        assert ["before", "choose", "inner_add", "inner_sub"] == list(planned.plan.decisions)

    def test_constraints_give_the_reason(self):
        """A node that must be single has the rule as reason and the number as evidence."""
        decision = found(OVERFLOW, BIG).plan["grow"]

        assert (Precision.SINGLE, Reason.OVERFLOW, "max 102,400 on `big`") == (
            decision.precision,
            decision.reason,
            decision.evidence,
        )

    def test_what_emulation_repairs_gives_the_evidence(self):
        """An error that no range shows has the emulator's measurement as evidence."""
        source = "m (float[n] x) => (float[n] y) <float far = {4000.0}> { [lift] h = Add(x, far) [drop] l = Sub(h, far) [act] y = Tanh(l) }"
        planned = found(source, {"x": floats(64)})

        assert Reason.ERROR_BORN is planned.plan["drop"].reason
        assert "at its inputs" in planned.plan["drop"].evidence
        assert Reason.FEEDS_MAGNIFIER is planned.plan["lift"].reason
        assert "an error beyond 10% first arises on `l`, made by Sub `drop`" == planned.first_divergence

    def test_numbers_too_small_are_explained_by_their_size(self):
        """If the emulator finds a tensor of subnormals, the reason is underflow."""
        source = "m (float[n] x) => (float[n] y) <float tiny = {1e-4}, float huge = {60000.0}> { [down] a = Mul(x, tiny) [square] b = Mul(a, a) [up] c = Mul(b, huge) [act] y = Mul(c, huge) }"
        planned = found(source, {"x": floats(64)})

        assert Reason.UNDERFLOW is planned.plan["square"].reason
        assert "below 6.1e-05" in planned.plan["square"].evidence

    def test_without_calibration_the_operator_list_decides(self):
        """`calibrate=False` measures nothing."""
        planned = found(LAYER_NORM, X, calibrate=False)

        assert op_list_plan(prepared(LAYER_NORM), FP16) == planned.plan
        assert ({}, 0) == (planned.predicted, planned.trials)

    def test_the_same_every_time(self):
        """Two searches on the same samples find the same plan."""
        assert found(LAYER_NORM, X).plan == found(LAYER_NORM, X).plan

    def test_bf16(self):
        """Numbers beyond FP16's range do not overflow in BF16."""
        planned = found(
            OVERFLOW,
            {"x": np.float32([1024.5, 0.1234])},
            precision="bf16",
            budget=Budget(Limits(relative_l2=5e-2)),
            half_io=True,
        )

        assert "bf16" == planned.plan.precision
        assert 2 == planned.plan.half_nodes

    def test_steps_are_shown(self):
        """Every phase that may take long is named."""
        shown = []

        @contextlib.contextmanager
        def step(name):
            shown.append(name)
            yield

        find_plan(prepared(MLP), samples(X), PlanSettings(), step)

        assert ["observing ranges", "repairing what half breaks"] == shown[:2]
        assert ["trying the cheapest plan", "measuring sensitivities of groups", "protecting close decisions"] == shown[
            2:
        ]

    def test_what_does_not_fit_is_solved_for(self):
        """If the cheapest plan is beyond the budget, sensitivities decide which nodes stay half."""
        shown = []

        @contextlib.contextmanager
        def step(name):
            shown.append(name)
            yield

        find_plan(prepared(MLP), samples(X), PlanSettings(budget=Budget(Limits(relative_l2=1e-5))), step)

        assert "solving for the cheapest plan" in shown[3:]


class TestWhatIsMeasured:
    """Trials that the choice of a fitting plan takes."""

    def test_the_cheapest_plan_fits(self):
        """If the cheapest plan fits, sensitivities are measured on one set of samples and scaled to the error on all sets."""
        sets = [{"x": floats(8, 4)} for _ in range(4)]
        planned = found(MLP, *sets)
        total = sum(decision.sensitivity**2 for decision in planned.plan.decisions.values())

        assert all(decision.is_half for decision in planned.plan.decisions.values())
        assert planned.predicted["y"] == pytest.approx(1e-2 * total**0.5, rel=0.3)

    def test_one_set_that_says_nothing(self):
        """If an output of the worst set is zero, sensitivities are measured on all sets."""
        source = "m (float[n, 4] x, float[n, 4] s) => (float[n, 4] y, float[n, 4] z) <float k = {1.1}> { [one] y = Mul(x, k) [two] d = Mul(s, k) [three] z = Sub(d, s) }"
        sets = [{"x": 100 * floats(4, 4), "s": np.zeros((4, 4), np.float32)}, {"x": floats(4, 4), "s": floats(4, 4)}]
        planned = found(source, *sets, half_io=True)

        assert all(np.isfinite(error) for error in planned.predicted.values())


class TestDecisions:
    """Decisions that rounding could change."""

    SOURCE = """
    m (float[n, 3] x) => (int64[n] y, float[n, 3] z) <float k = {1.1}, float l = {0.7}, float[3] c = {0.1, 0.1, 0.1}>
    {
      [one] a = Mul(x, k) [two] b = Mul(a, l) [three] s = Add(b, c)
      [pick] y = ArgMax <axis = 1, keepdims = 0> (s)
      [act] z = Tanh(x)
    }
    """

    @pytest.mark.parametrize("seed", [53, 89, 120, 137])
    def test_what_is_given_back_may_not_bring_a_decision_near_again(self, seed):
        """Nodes that compute close scores stay single, even if half decides these samples correctly."""
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(6, 3)).astype(np.float32)
        x[:, 2] = x[:, 1] + rng.normal(size=6) * 4e-4
        x[:, 0] -= 5

        plan = found(self.SOURCE, {"x": x}, half_io=True).plan

        assert {"act"} == {name for name, decision in plan.decisions.items() if decision.is_half}


class TestBorder:
    """Casts at the model's own inputs and outputs have their costs."""

    RELU = "m (float[n, 4] x) => (float[n, 4] y) { [it] y = Relu(x) }"
    ISLAND = """
    m (float[n, 64] x) => (float[n, 64] y) <int64 axis = {1}>
    { [before] a = CumSum(x, axis) [it] b = Relu(a) [after] y = CumSum(b, axis) }
    """

    def test_a_single_cheap_node_stays_single(self):
        """Two casts cost more than one Relu gains in half; the evidence names their places."""
        decision = found(self.RELU, X).plan["it"]

        assert (Reason.CHEAPER, Precision.SINGLE) == (decision.reason, decision.precision)
        assert (
            "casts around it and at the model's inputs and outputs would cost more time than half precision saves"
            == decision.evidence
        )

    def test_an_island_between_single_nodes_stays_single(self):
        """A cheap node between two single nodes stays single."""
        plan = found(self.ISLAND, {"x": floats(8, 64)}).plan

        assert Reason.CHEAPER is plan["it"].reason

    def test_half_inputs_and_outputs_cost_no_casts(self):
        """With half inputs and outputs the same node is half."""
        assert found(self.RELU, X, half_io=True).plan.is_half("it")

    def test_a_product_is_worth_its_casts(self):
        """A matrix product reads a weight that half stores in half the bytes: casts at the border are worth it."""
        assert 4 == found(MLP, X).plan.half_nodes

    def test_forced_whatever_the_casts_cost(self):
        """A forced node is half, whatever its casts cost."""
        assert found(self.RELU, X, force_half=("it",)).plan.is_half("it")


class TestMoreExact:
    """Of `--keep-fp32` and `--force-half` on one node its own name wins over globs and operator types."""

    @pytest.mark.parametrize("calibrate", [True, False])
    @pytest.mark.parametrize("wide", ["*", "fir*", "MatMul"])
    def test_the_name_wins(self, wide, calibrate):
        """If one option has the node's name and the other a pattern, the name decides, with and without measurements."""
        kept = found(MLP, X, keep_fp32=("first",), force_half=(wide,), calibrate=calibrate).plan["first"]
        forced = found(MLP, X, keep_fp32=(wide,), force_half=("first",), calibrate=calibrate).plan["first"]

        assert (Precision.SINGLE, Reason.PINNED) == (kept.precision, kept.reason)
        assert Precision.HALF is forced.precision

    @pytest.mark.parametrize(("keep", "force"), [("first", "first"), ("fir*", "MatMul"), ("*", "f*")])
    def test_two_of_a_kind_contradict_each_other(self, keep, force):
        """Two patterns on one node are an error with a hint."""
        with pytest.raises(InputError, match="`first` is requested in FP32") as caught:
            found(MLP, X, keep_fp32=(keep,), force_half=(force,))

        assert "name the node itself" in caught.value.hint


class TestForce:
    """Forced nodes are half, whatever the error."""

    def test_forced_over_a_constraint(self):
        """A forced node is half even if it overflows."""
        plan = found(OVERFLOW, BIG, force_half=("grow",)).plan

        assert plan.is_half("grow")

    def test_forced_over_a_repair(self):
        """A node that the emulator would pin is half, too; the first infinity is still reported."""
        planned = found(OVERFLOW, BIG, force_half=("*",))

        assert 2 == planned.plan.half_nodes
        assert "NaN or infinity first arises on `big`, made by Mul `grow`" == planned.first_divergence

    def test_kept(self):
        """Kept nodes are single, with the reason."""
        decision = found(MLP, X, keep_fp32=("second",)).plan["second"]

        assert (Reason.PINNED, "--keep-fp32 second") == (decision.reason, decision.evidence)

    def test_impossible(self):
        """A node that no type allows in half is an error before anything is searched."""
        with pytest.raises(ConversionError, match="cannot be forced"):
            found(BRANCHES, {"x": floats(3), "flag": np.array(True)}, force_half=("choose",))


class TestNeighbours:
    """A broken node does not make its neighbours single."""

    def test_an_overflow_hides_no_other_node(self):
        """One loop of a long chain overflows inside its body: only nodes there stay single, for the range of its tensors."""
        rng = np.random.default_rng(0)
        weight = rng.normal(size=(64, 64)).astype(np.float32) / 8
        body = "[l0] v0 = MatMul(x, w)\n"
        for i in range(1, 60):
            body += (
                f"[t{i}] u{i} = Tanh(v{i - 1}) [l{i}] v{i} = MatMul(u{i}, w)\n"
                if i != 30
                else f"[loop] v30 = {LOOP_BODY}\n"
            )
        source = (
            f"m (float[n, 64] x) => (float[n, 64] v59) <float[64, 64] w = {{{listed(weight)}}}, float k = {{1000.0}}, "
            f"int64 trips = {{1}}, bool go = {{1}}> {{ {body} }}"
        )

        plan = found(source, {"x": floats(64, 64)}).plan

        single = {name for name, decision in plan.decisions.items() if not decision.is_half}
        assert single <= {"loop", "up", "square", "root", "down"}
        assert {"square", "root"} & single
        assert Reason.OVERFLOW is plan["square"].reason


LOOP_BODY = """Loop (trips, go, v29) < body = step (int64 i, bool was, float[n, 64] s) => (bool still, float[n, 64] next) {
  [same] still = Identity(was) [up] big = Mul(s, k) [square] sq = Mul(big, big) [root] r = Sqrt(sq) [down] next = Div(r, k) } >"""


def test_model_is_left_alone():
    """Finding a plan does not change the model."""
    model = prepared(LAYER_NORM)
    before = text(model)

    find_plan(model, samples(X), PlanSettings())

    assert before == text(model)
