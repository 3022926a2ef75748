"""The planner: predictions that hold, and the cheapest plan within the budget."""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.calibration.emulation.sensitivity import Sensitivities, Survey
from demi.calibration.emulation.switchable import Emulator
from demi.calibration.emulation.switches import input_source
from demi.calibration.emulation.trials import HARDEST, TrialRunner
from demi.calibration.observe import observe
from demi.exporter.passes.prepare import prepare
from demi.exporter.planning.costs import DeviceCosts, Sizes
from demi.exporter.planning.planner import Planner
from demi.exporter.planning.verified_plan import AIM, ATTEMPTS, CLIMB, VERIFIED, plan_within
from demi.float16 import FP16
from tests.exporter.planning.helpers import FakeComparison, FakeSearch, floats, operands, samples
from tests.exporter.planning.shapes import SHAPES
from tests.models import MLP, prepared

FAST = DeviceCosts(bandwidth=1e12, half_flops=1.0, single_flops=0.5, rows=1)
"""A device whose time is all FLOPs: casts cost next to nothing."""


def planner(squares, source=MLP, device=FAST, pinned=(), forced=()):
    """A planner of a model in text, with made-up squares."""
    model = prepared(source)
    profile = observe(model, samples({"x": floats(8, 4)}))
    sensitivities = Sensitivities(squares, frozenset(squares), 0)
    return Planner(model, operands(model), Sizes(profile), device, sensitivities, frozenset(pinned), frozenset(forced))


EVEN = dict.fromkeys(("first", "bias", "act", "second"), (0.25,))


class TestPrediction:
    """Predictions: squares add up to the measured error."""

    @pytest.mark.parametrize("name", SHAPES)
    def test_half_of_a_network(self, name):
        """The first half of a network in half, or the second: the emulated error is the predicted one within 25%."""
        hard = SHAPES[name]()
        model = prepare(ir.from_proto(hard.model))
        found = operands(model)
        with Emulator(model, found, FP16) as emulator:
            runner = TrialRunner(emulator, hard.calibration, Budget())
            survey = Survey(runner, [*(input_source(value.name) for value in model.graph.inputs), *found])
            survey.refine(192)
            sensitivities = survey.result
            sizes = Sizes(observe(model, samples(*hard.calibration)))
            each = Planner(model, found, sizes, DeviceCosts(), sensitivities, frozenset())
            names = list(found)
            for chosen in (names[: len(names) // 2], names[len(names) // 2 :], names):
                predicted = each.predict([name in chosen for name in names])
                comparison = runner.compare(frozenset(chosen))
                for share, diff in zip(predicted, comparison.outputs, strict=True):
                    assert pytest.approx(share, rel=0.25) == diff.relative_l2 / runner.scale(diff.output)

    def test_squares_add(self):
        """Four nodes of a quarter each use the whole budget; two of them use its root half."""
        each = planner(EVEN)

        assert (1.0,) == each.predict([True] * 4)
        assert (pytest.approx(math.sqrt(0.5)),) == each.predict([True, True, False, False])
        assert (0.0,) == each.predict([False] * 4)

    def test_a_cast_rounds_as_its_maker_would(self):
        """A cast for a half reader adds the square of the tensor's maker; a graph input has its own square."""
        each = planner(EVEN | {"input:x": (0.5,)})

        assert (pytest.approx(math.sqrt(0.25 + 0.25)),) == each.predict([False, False, False, True])
        assert (pytest.approx(math.sqrt(0.5 + 0.25)),) == each.predict([True, False, False, False])


class TestAssign:
    """The cheapest assignment within a target."""

    def test_everything_when_it_fits(self):
        """If everything is within the target, all nodes are half."""
        assignment = planner(EVEN).assign(1.0)

        assert frozenset(EVEN) == assignment.half == assignment.cheapest
        assert (1.0,) == assignment.predicted

    @pytest.mark.parametrize("target", [0.9, 0.75, 0.6, 0.3, 0.1, 0.0])
    def test_targets_are_kept(self, target):
        """The predicted error is within any target."""
        assert max(planner(EVEN).assign(target).predicted) <= target

    def test_the_sensitive_node_is_given_up_first(self):
        """Among nodes with equal gain, the one with the largest error stays single."""
        squares = {"first": (0.9,), "bias": (0.01,), "act": (0.01,), "second": (0.01,)}

        assert {"bias", "act", "second"} <= planner(squares | {"input:x": (0.0,)}).assign(0.95).half | {"bias", "act"}
        assert "first" not in planner(squares).assign(0.5).half

    def test_pinned_and_forced(self):
        """Pinned nodes stay single and forced nodes become half, at any cost."""
        assert frozenset({"bias", "act", "second"}) == planner(EVEN, pinned=["first"]).assign(9.0).half
        assert "first" in planner(EVEN, forced=["first"]).assign(0.1).half

    def test_forced_though_it_breaks_the_model(self):
        """A forced node is half even if its error is infinite."""
        assert "second" in planner(EVEN | {"second": (math.inf,)}, forced=["second"]).assign(0.7).half

    def test_an_unlimited_square_is_never_half(self):
        """A node with an infinite error of its own is single, however low the price of errors is."""
        assignment = planner(EVEN | {"second": (math.inf,)}).assign(9.0)

        assert "second" not in assignment.half
        assert "second" not in assignment.cheapest
        assert all(math.isfinite(share) for share in assignment.predicted)

    def test_time_of_casts(self):
        """On a device where casts are expensive, an island is not worth its casts."""
        dear = DeviceCosts(bandwidth=1.0, half_flops=1e12, single_flops=1e12, rows=1, launch_s=1e3)

        assert frozenset() == planner(EVEN, device=dear, pinned=["first", "second"]).assign(9.0).half

    def test_measured_times_take_the_place_of_estimates(self):
        """A node that was measured to be slower in half stays single."""
        device = DeviceCosts(seconds={"first": (5.0, 1.0), "second": (1.0, 5.0)})

        half = planner(EVEN, device=device).assign(9.0).half

        assert "second" in half
        assert "first" not in half

    def test_the_same_every_time(self):
        """Two planners of one model find the same assignment."""
        assert planner(EVEN).assign(0.6) == planner(EVEN).assign(0.6)


@dataclass
class FakePlanner:
    """Fake planner that predicts exactly the target, and records the targets."""

    targets: list[float] = field(default_factory=list)
    forgoes: float = 0.1
    """The share of the gain that is forgone at a target of zero."""

    def assign(self, target):
        """Return an assignment that uses the whole target."""
        self.targets.append(target)
        return FakeAssignment(frozenset({f"to {len(self.targets)}"}), (target,), forgone=self.forgoes / (1 + target))


@dataclass(frozen=True)
class FakeAssignment:
    """The parts of an assignment that plan_within reads."""

    half: frozenset[str]
    predicted: tuple[float, ...]
    cheapest: frozenset[str] = frozenset({"everything"})
    forgone: float = 1.0


def search(answers):
    """A fake of the trials that returns these results in order, then the last one forever."""
    left = list(answers)
    return FakeSearch(lambda half: left.pop(0) if len(left) > 1 else left[0])


class TestRefining:
    """The planner between two rounds of measuring."""

    def test_worth(self):
        """The worth of a node that is single because of its error is its share of the possible gain."""
        each = planner(dict.fromkeys(EVEN, (0.25,)) | {"second": (100.0,)})
        assignment = each.assign(1.0)
        worth = each.worth(assignment)

        assert {"second"} == worth.keys()
        assert 0 < worth["second"] < 1

    def test_what_is_forgone(self):
        """The forgone gain is 0 for the cheapest assignment and 1 if nothing is half."""
        assert 0.0 == planner(EVEN).assign(2.0).forgone
        assert 1.0 == pytest.approx(planner(dict.fromkeys(EVEN, (100.0,))).assign(0.1).forgone)

    def test_pinned_later(self):
        """A node that is pinned stays single from then on, unless it is forced; only new ones count."""
        each = planner(EVEN, forced=("first",))

        assert each.pin({"second"})
        assert not each.pin({"second", "first"})
        assert {"first", "bias", "act"} >= each.assign(2.0).half >= {"first"}

    def test_new_sensitivities(self):
        """The same assignment gets a new prediction from new sensitivities."""
        each = planner(EVEN)
        assignment = each.assign(2.0)
        each.use_sensitivities(Sensitivities(dict.fromkeys(EVEN, (1.0,)), frozenset(), 0))

        assert (2.0,) == each.with_new_prediction(assignment).predicted


class TestPlanWithin:
    """The prediction is verified, and the target follows."""

    def targets(self, *answers):
        """Return the targets that are tried for these results."""
        each = FakePlanner()
        plan_within(each, search(answers))
        return each.targets

    def test_verified_at_once(self):
        """A plan whose prediction holds is returned at once."""
        assert [AIM] == self.targets(0.7)

    def test_target_falls_by_the_disagreement(self):
        """After an error of twice the budget, the next target is below half of the first."""
        first, second = self.targets(2.0, 0.7)

        assert AIM == first
        assert AIM / 2 * VERIFIED >= second > AIM / 4

    def test_target_rises_while_there_is_room(self):
        """If a plan uses much less than predicted, the target rises, at most to twice its value in a step."""
        targets = self.targets(0.1, 0.2, 0.6)

        assert [AIM, 2 * AIM, 4 * AIM] == pytest.approx(targets)

    def test_a_plan_that_forgoes_much_is_followed_by_higher_targets(self):
        """Errors scatter: the next plan may pass as well, though this one uses its share of the budget."""
        each = FakePlanner(forgoes=1.0)
        found = plan_within(each, search([0.6, 0.8, 2.0]))

        assert [AIM, CLIMB * AIM] == pytest.approx(each.targets[:2])
        assert frozenset({"to 2"}) == found.half

    def test_a_given_start(self):
        """The first target may be that of an earlier plan."""
        each = FakePlanner()
        plan_within(each, search([0.7]), 0.2)

        assert [0.2] == each.targets

    def test_the_last_that_verified_is_kept(self):
        """If a raised target fails, the plan before it is returned."""
        assert frozenset({"to 1"}) == plan_within(FakePlanner(), search([0.1, 2.0])).half

    def test_between_one_that_verifies_and_one_that_fails(self):
        """After a raised target fails, the geometric mean is tried, and returned if it verifies."""
        targets = self.targets(0.2, 2.0, 0.6)

        assert [AIM, 2 * AIM, math.sqrt(2) * AIM] == pytest.approx(targets)

    def test_a_limit_of_another_kind(self):
        """If top-1 fails while the error is small, steps grow, so that a few of them reach any target."""
        targets = self.targets(FakeComparison(0.1, passed=False))

        assert ATTEMPTS + 1 == len(targets)
        assert all(after < before for before, after in itertools.pairwise(targets))
        assert targets[-1] < 2e-2 * AIM
        assert targets[1] > AIM / 2

    def test_not_finite(self):
        """An infinite error at least halves the target."""
        first, second, *_ = self.targets(math.inf, 0.5)

        assert second <= first / 2

    def test_the_last_is_returned(self):
        """If nothing verifies, the last and smallest plan is returned: the final check decides."""
        assert frozenset({f"to {ATTEMPTS + 1}"}) == plan_within(FakePlanner(), search([9.0])).half


class TestTrialRunner:
    """The share of the budget that a plan uses."""

    def used(self, **limits):
        """Return the load and the error of an MLP in half, for a budget of these limits."""
        model = prepared(MLP)
        with Emulator(model, operands(model), FP16) as emulator:
            runner = TrialRunner(emulator, [{"x": floats(64, 4)}], Budget(Limits(**limits)))
            comparison = runner.compare(frozenset(operands(model)))
            return runner.load(comparison), comparison.outputs[0]

    def test_samples_that_differ(self):
        """If one sample of 16 causes the error, a request like it alone has four times the error of all."""
        model = prepared("m (float[n, 4] x) => (float[n, 4] y) { [square] y = Mul(x, x) }")
        exact = np.ones((1, 4), np.float32)
        with Emulator(model, operands(model), FP16) as emulator:
            uneven = TrialRunner(emulator, [{"x": floats(1, 4)}, *[{"x": exact}] * 15], Budget())
            even = TrialRunner(emulator, [{"x": floats(1, 4)}] * 16, Budget())
            loads = [
                (runner.load(runner.compare({"square"})), runner.verify({"square"})[1]) for runner in (uneven, even)
            ]

        assert HARDEST * 4 == pytest.approx(loads[0][1] / loads[0][0], rel=0.2)
        assert loads[1][0] == pytest.approx(loads[1][1])

    def test_a_sample_of_zeros(self):
        """If the output of one sample is zero, an error there is weighed against the other samples."""
        model = prepared(
            "m (float[n, 4] x) => (float[n, 4] y) <float k = {0.3}> { [a] a = Mul(x, k) [b] y = Sub(a, x) }"
        )
        zero = np.zeros((1, 4), np.float32)
        with Emulator(model, operands(model), FP16) as emulator:
            runner = TrialRunner(emulator, [{"x": floats(1, 4)}, {"x": zero}], Budget())
            runner.references[1] = {"y": zero + 0.0}
            runner.feeds[1] = {"x": zero + 1e-3}

            assert all(math.isfinite(each) for each in runner.contributions({"a", "b"}))
            assert math.isfinite(runner.verify({"a", "b"})[1])

    def test_relative_l2(self):
        """The load is the error divided by its limit."""
        load, diff = self.used(relative_l2=1e-3)

        assert load == pytest.approx(diff.relative_l2 / 1e-3)

    def test_without_a_limit_on_relative_l2(self):
        """Without a limit on relative L2, the load is relative to 1e-2."""
        load, diff = self.used()

        assert load == pytest.approx(diff.relative_l2 / 1e-2)

    def test_max_abs(self):
        """The load is the largest difference divided by its limit, if that is larger."""
        load, diff = self.used(max_abs=1e-5)

        assert load == pytest.approx(diff.max_abs / 1e-5)

    def test_cosine(self):
        """1 - cosine grows with the square of the error, so its root is taken."""
        load, diff = self.used(cosine=1 - 1e-12)

        assert load == pytest.approx(math.sqrt((1 - diff.cosine) / 1e-12), rel=1e-3)

    def test_a_limit_of_zero(self):
        """Any error uses an infinite share of a limit of zero."""
        assert math.inf == self.used(max_abs=0.0)[0]
        assert math.inf == self.used(cosine=1.0)[0]
