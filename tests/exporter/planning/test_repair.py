"""Repair: find where large errors arise, pin nodes for them, and release pins that are not needed."""

import numpy as np
import onnx_ir as ir
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.calibration.deadline import Deadline
from demi.calibration.emulation.tensor_errors import TensorError, tensor_error
from demi.exporter.planning.decisions import gap as gap_to_another_answer
from demi.exporter.planning.find_plan import ORDINARY
from demi.exporter.planning.repair import ADDITIVE, blame, first_divergence, protect_decisions, repair
from demi.exporter.planning.repair_state import Graph, Repair
from demi.float16 import FP16
from demi.plan import Reason
from tests.exporter.planning.helpers import bench, floats
from tests.models import LOOP, MLP, OVERFLOW, prepared

CANCEL = """
cancel (float[n] x) => (float[n] y)
<float far = {4000.0}, float two = {2.0}>
{
  [double] twice = Mul(x, two)
  [lift] high = Add(twice, far)
  [drop] low = Sub(high, far)
  [after] y = Tanh(low)
}
"""
"""Large numbers are rounded in half, and the Sub magnifies that error."""

TRUNCATE = """
truncate (float[n] x) => (int64[n] y)
<float ten = {10.0}>
{ [scale] a = Mul(x, ten) [cut] y = Cast <to = 7> (a) }
"""

LOOK_UP = """
look_up (float[n] x) => (float[n] y)
<float eight = {8.0}, float[8] table = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}>
{ [scale] a = Mul(x, eight) [cut] i = Cast <to = 7> (a) [look] b = Gather(table, i) [after] y = Tanh(b) }
"""
"""An index that is out of bounds if x is rounded up to one."""


def repaired(source, *feeds, budget=None, ordinary=0.0):
    """Return the nodes that repair pins when everything may be half, and the remaining load."""
    with bench(source, *feeds, budget=budget) as it:
        result = repair(it.graph, it.runner, it.candidates, ordinary)
        return result, it.runner.load(it.runner.compare(it.candidates - result.pinned.keys()))


def why(result):
    """Return the reason of each pinned node."""
    return {name: reason for name, (reason, _) in result.pinned.items()}


class TestBlame:
    """The node where an error arises."""

    def errors(self, **relative):
        """Return errors of tensors, as given."""
        return {name: TensorError(error, error) for name, error in relative.items()}

    def blamed(self, errors, load=1.0, source=CANCEL):
        """Return the names of the nodes to blame for given errors."""
        with bench(source, {"x": floats(3)}) as it:
            comparison = it.runner.compare(it.candidates)
            return [node.name for node in blame(it.graph, errors, comparison, it.runner)]

    def test_large_after_and_small_before(self):
        """The node with a large error at its output and small ones at its inputs is blamed."""
        assert ["drop"] == self.blamed(self.errors(twice=1e-4, high=3e-4, low=0.3, y=0.2))

    def test_not_a_finite_number(self):
        """The node of the first infinity is blamed, not the nodes after it."""
        assert ["lift"] == self.blamed(self.errors(twice=1e-4, high=np.inf, low=np.inf, y=np.inf))

    def test_error_that_only_passes_through(self):
        """An error that is passed on, or grows a little, is attributed to the node where it arises."""
        assert ["double"] == self.blamed(self.errors(twice=0.1, high=0.1, low=0.3, y=0.3))

    def test_threshold_falls(self):
        """If no error exceeds the whole budget, the threshold drops to a quarter of it."""
        assert ["drop"] == self.blamed(self.errors(twice=1e-4, high=3e-4, low=4e-3, y=4e-3))

    def test_nothing_to_blame(self):
        """Without an error that arises somewhere, no node is pinned."""
        assert [] == self.blamed(self.errors(twice=1e-3, high=1e-3, low=2e-3, y=2e-3))

    def test_only_what_feeds_a_bad_output(self):
        """A node that only feeds outputs within their limits is not blamed."""
        source = "m (float[n] x) => (float[n] y, float[n] z) <float k = {1000.0}> { [a] h = Add(x, k) [b] y = Sub(h, k) [c] z = Tanh(x) }"
        with bench(source, {"x": floats(8)}) as it:
            errors = self.errors(h=1e-4, y=0.5, z=0.5)
            culprits = blame(it.graph, errors, it.runner.compare({"a"}), it.runner)

        assert ["b"] == [node.name for node in culprits]

    def test_first_divergence(self):
        """The first non-finite tensor is named with its maker; else the first error beyond 10%."""
        graph = Graph(prepared(CANCEL))

        assert "NaN or infinity first arises on `low`, made by Sub `drop`" == first_divergence(
            graph, self.errors(twice=0.2, high=0.2, low=np.inf, y=np.inf)
        )
        assert "an error beyond 10% first arises on `twice`, made by Mul `double`" == first_divergence(
            graph, self.errors(twice=0.2, high=0.2)
        )
        assert first_divergence(graph, self.errors(twice=0.01)) is None


class TestRepair:
    """Repair pins nodes until the outputs are within the budget."""

    def test_overflow(self):
        """The node that outputs an infinity is pinned, and then its reader."""
        result, load = repaired(OVERFLOW, {"x": np.float32([1024])})

        assert {"grow": Reason.ERROR_BORN, "shrink": Reason.ERROR_BORN} == why(result)
        assert "NaN or infinity on `big`, 0 at its inputs" == result.pinned["grow"][1]
        assert "NaN or infinity first arises on `big`, made by Mul `grow`" == result.first_divergence
        assert load < 0.5

    def test_climbs_to_what_feeds_a_magnifier(self):
        """The Sub is blamed, and once it is single, the nodes that feed it are pinned."""
        result, load = repaired(CANCEL, {"x": floats(16)})

        assert Reason.ERROR_BORN is why(result)["drop"]
        assert Reason.FEEDS_MAGNIFIER is why(result)["lift"]
        assert "feeds `drop`, which magnifies rounding errors" == result.pinned["lift"][1]
        assert "after" not in result.pinned
        assert load < 0.5

    def test_wrong_integers(self):
        """Wrong integers are repaired until all are right, however few they are."""
        x = np.linspace(0.05, 0.95, 64, dtype=np.float32).repeat(3) + np.float32([1e-5, 0.0499, -1e-5] * 64)
        result, load = repaired(TRUNCATE, {"x": x})

        assert {"scale", "cut"} == set(result.pinned)
        assert load == 0.0

    def test_a_run_that_fails_is_repaired(self):
        """An index out of bounds fails the run: the nodes that compute it are pinned, with the reason."""
        result, load = repaired(LOOK_UP, {"x": np.float32([0.1, 0.99999])})

        assert {"scale", "cut"} == set(result.pinned)
        assert {(Reason.SELECTION, "feeds an index that rounding moves out of bounds")} == set(result.pinned.values())
        assert load < 0.5

    def test_a_run_that_fails_counts_as_wrong(self):
        """A failed run has an infinite load, and no readable tensors."""
        with bench(LOOK_UP, {"x": np.float32([0.99999])}) as it:
            assert np.inf == it.runner.load(it.runner.compare(it.candidates))
            assert it.runner.tensor_errors(it.candidates, ["a"]) is None

    def test_inside_a_loop(self):
        """A loop whose body overflows is repaired in its body."""
        source = LOOP.replace("[grow] grown = Add(state, start)", "[up] up = Mul(state, state) [grow] grown = Sqrt(up)")
        result, load = repaired(source, {"x": np.float32([1000.0])})

        assert "up" in result.pinned
        assert load < 0.5

    def test_nothing_to_repair(self):
        """A model without large errors in half needs one trial and no pins."""
        with bench(MLP, {"x": floats(8, 4)}) as it:
            assert {} == repair(it.graph, it.runner, it.candidates).pinned
            assert it.runner.trials == 1

    def test_errors_that_add_up_are_left_to_the_cut(self):
        """An error of a few times the budget is left to the cut: no node is pinned, after one trial."""
        with bench(CANCEL.replace("4000.0", "300.0"), {"x": floats(16)}) as it:
            assert 1 < it.runner.load(it.runner.compare(it.candidates)) < ADDITIVE
            assert {} == repair(it.graph, it.runner, it.candidates).pinned

    def test_out_of_time(self):
        """When the time is up, all nodes that feed an output beyond the budget stay single, with that reason."""
        source = "m (float[n] x) => (float[n] y, float[n] z) <float k = {90000.0}> { [a] h = Mul(x, k) [b] y = Div(h, k) [c] z = Tanh(x) }"
        with bench(source, {"x": floats(8)}) as it:
            result = repair(it.graph, it.runner, it.candidates, deadline=Deadline(0))

            assert {"a": Reason.FEEDS_MAGNIFIER, "b": Reason.FEEDS_MAGNIFIER} == why(result)
            assert "--search-seconds passed" in result.pinned["a"][1]

    def test_progress_is_reported(self):
        """The used share of the time is reported once a round."""
        seen = []
        with bench(OVERFLOW, {"x": np.float32([1024])}) as it:
            repair(it.graph, it.runner, it.candidates, deadline=Deadline(1e6), report=seen.append)

        assert seen
        assert all(0 <= share < 1 for share in seen)

    def test_a_tight_budget_is_no_defect(self):
        """Ordinary roundings beyond a tight budget are left to the cut: no node is pinned."""
        tight = Budget(Limits(relative_l2=1e-6))
        ordinary = ORDINARY * FP16.epsilon

        assert {} == repaired(MLP, {"x": floats(8, 4)}, budget=tight, ordinary=ordinary)[0].pinned
        assert repaired(MLP, {"x": floats(8, 4)}, budget=tight)[0].pinned

    def test_broken_is_broken_under_any_budget(self):
        """An error that rounding cannot explain is repaired, whatever the budget."""
        tight = Budget(Limits(relative_l2=1e-6))

        assert "drop" in repaired(CANCEL, {"x": floats(16)}, budget=tight, ordinary=ORDINARY * FP16.epsilon)[0].pinned


class TestDecisions:
    """Decisions that rounding could change."""

    def protected(self, source, *feeds):
        """Return the nodes that are pinned for decisions alone."""
        with bench(source, *feeds) as it:
            result = Repair()
            protect_decisions(it.graph, it.runner, it.candidates, result)
            return result

    ARGMAX = "m (float[n, 3] x) => (int64[n] y) <float k = {1.1}> { [scale] s = Mul(x, k) [pick] y = ArgMax <axis = 1, keepdims = 0> (s) }"
    TOPK = "m (float[3] x) => (int64[1] y) <float k = {1.1}, int64[1] one = {1}> { [scale] s = Mul(x, k) [pick] v, y = TopK(s, one) }"

    def test_close_scores(self):
        """If two scores are closer than four times the error, all nodes that compute them are pinned."""
        result = self.protected(self.ARGMAX, {"x": np.float32([[0.1, 1.0001, 1.0]])})

        assert {"scale": Reason.SELECTION, "pick": Reason.SELECTION} == why(result)
        assert {"scale", "pick"} == result.cones
        assert "`pick` decides by a gap of 0.00011, half changes its scores by up to " in result.pinned["scale"][1]

    def test_scores_far_apart(self):
        """A wide gap needs no protection."""
        assert {} == self.protected(self.ARGMAX, {"x": np.float32([[0.1, 1.5, 1.0]])}).pinned

    def test_all_samples_count(self):
        """One close decision among many is enough."""
        feeds = [{"x": np.float32([[0, 1, 2]])}, {"x": np.float32([[1, 1.00001, 0]])}]

        assert {"scale", "pick"} == set(self.protected(self.ARGMAX, *feeds).pinned)

    @pytest.mark.parametrize(("second", "pinned"), [(0.99995, True), (0.5, False)])
    def test_top_k(self, second, pinned):
        """The same holds for the indices of a TopK that are read."""
        assert pinned == bool(self.protected(self.TOPK, {"x": np.float32([second, 1.0, 0.1])}).pinned)

    def test_top_k_of_values_alone_decides_nothing(self):
        """If only the values are read, close ones may swap."""
        source = self.TOPK.replace("(int64[1] y)", "(float[1] v)")

        assert {} == self.protected(source, {"x": np.float32([0.99995, 1.0, 0.1])}).pinned

    @pytest.mark.parametrize(("value", "pinned"), [(0.29999, True), (0.25, False)])
    def test_truncation(self, value, pinned):
        """A number just below an integer is a close decision of a Floor or a cast."""
        assert pinned == bool(self.protected(TRUNCATE, {"x": np.float32([value])}).pinned)

    def test_exact_scores_need_nothing(self):
        """Scores that half does not change need no protection."""
        source = self.ARGMAX.replace("{1.1}", "{2.0}")

        assert {} == self.protected(source, {"x": np.float32([[1.0, 1.25, 1.5]])}).pinned

    @pytest.mark.parametrize(
        ("text", "scores", "gap"),
        [
            ("y = ArgMax <axis = 1> (x)", [[1, 4, 3], [9, 2, 0]], 1.0),
            ("y = ArgMin <axis = 1> (x)", [[1, 4, 3], [9, 2, 0.5]], 1.5),
            ("y = ArgMax <axis = 0> (x)", [[1, 4, 3], [9, 2, 0.5]], 2.0),
            ("v, y = TopK(x, two)", [[1, 4, 3], [9, 2, 0.5]], 1.0),
            ("v, y = TopK <largest = 0> (x, two)", [[1, 4, 3.5], [9, 2, 0.5]], 0.5),
            ("y = Cast <to = 7> (x)", [[1.25, 4.5, 3.9], [0.5, 0.5, 0.5]], 0.1),
            ("y = ArgMax <axis = 1> (x)", [[7], [3]], np.inf),
            ("y = ArgMax <axis = 1> (x)", [[-np.inf, 1, 3]], 2.0),
        ],
        ids=["argmax", "argmin", "axis 0", "top 2", "lowest 2", "truncation", "one candidate", "masked"],
    )
    def test_gap(self, text, scores, gap):
        """The distance of a result from the nearest other one."""
        model = prepared(f"m (float[a, b] x) => (int64[c, d] y) <int64[1] two = {{2}}> {{ [it] {text} }}")

        assert gap == pytest.approx(gap_to_another_answer(next(iter(model.graph)), np.float32(scores)), rel=1e-5)


class TestGraph:
    """The edges of the graph."""

    def test_ancestors_by_level(self):
        """One level up, two levels up, all the way."""
        graph = Graph(prepared(CANCEL))
        drop = graph.nodes[2]

        def names(levels):
            return {node.name for node in graph.ancestors([drop], levels)}

        assert {"drop"} == names(0)
        assert {"drop", "lift"} == names(1)
        assert {"drop", "lift", "double"} == names(2) == names(None)

    def test_bodies_read_outer_tensors(self):
        """A loop is fed by what its body reads from outside, and switches as one with its body."""
        graph = Graph(prepared(LOOP))
        loop = next(node for node in graph.nodes if node.name == "loop")

        assert "before" in {maker.name for maker in graph.makers(loop)}
        assert {"loop", "again", "grow", "shrink"} == set(graph.switchable(loop))


class TestTensorError:
    """The error of one tensor."""

    @pytest.mark.parametrize(
        ("reference", "measured", "relative"),
        [
            (np.float32([3, 4]), np.float32([3, 4]), 0.0),
            (np.float32([3, 4]), np.float32([3, 4.5]), 0.1),
            (np.float32([3, 4]), np.float32([3, np.inf]), np.inf),
            (np.float32([3, np.inf]), np.float32([3, np.inf]), 0.0),
            (np.array([1, 2]), np.array([1, 2]), 0.0),
            (np.arange(1000), np.arange(1000) + (np.arange(1000) == 5), 0.1),
            (np.zeros(4, bool), np.ones(4, bool), 1.0),
            (np.zeros(4, np.float32), np.zeros(3, np.float32), np.inf),
        ],
        ids=["equal", "off", "infinite", "both infinite", "integers", "one wrong integer", "booleans", "other shape"],
    )
    def test_relative(self, reference, measured, relative):
        """The error is the relative L2; a wrong integer counts at least 10%, and a one-sided infinity is infinite."""
        assert relative == pytest.approx(tensor_error(reference, measured).relative)


def test_models_are_left_alone():
    """Repair reads the model and changes nothing."""
    model = prepared(CANCEL)
    before = ir.to_proto(model).SerializeToString()
    with bench(model, {"x": floats(4)}) as it:
        repair(it.graph, it.runner, it.candidates)

    assert before == ir.to_proto(model).SerializeToString()
