"""Decisions: the nodes that decide, and the distance to another result."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demi.exporter.api import convert
from demi.exporter.planning.decisions import decides_by, safety
from demi.plan import Reason
from tests.models import parse, prepared, run

CHOOSE = """choose (float[1, 6, 4] boxes, float[1, 1, 6] scores) => (int64[n, 3] selected)
<int64 most = {MOST}, float overlap = {0.4}, float least = {0.3}>
{ [choose] selected = NonMaxSuppression <center_point_box = CENTRE> (boxes, scores, most, overlap, least) }"""

DETECT = """detect (float[1, 3, 4] features, float[1, 1, 3] s) => (int64[n, 3] selected)
<float k = {1.1}, int64 most = {3}, float overlap = {0.5}, float least = {0.2}>
{
  [place] boxes = Mul(features, k)
  [weigh] scores = Mul(s, k)
  [choose] selected = NonMaxSuppression(boxes, scores, most, overlap, least)
}"""

ML = "ai.onnx.ml"
TREE = """<n_targets = 1, nodes_featureids = [2, 0, 0], nodes_values = [1.5, 0.0, 0.0],
 nodes_modes = ["BRANCH_LEQ", "LEAF", "LEAF"], nodes_treeids = [0, 0, 0], nodes_nodeids = [0, 1, 2],
 nodes_truenodeids = [1, 0, 0], nodes_falsenodeids = [2, 0, 0], target_ids = [0, 0], target_nodeids = [1, 2],
 target_treeids = [0, 0], target_weights = [1.0, 2.0]>"""

APART = np.float32([[[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]])
OVERLAPPING = np.float32([[[0, 0, 1, 1], [0, 0, 1, 0.9], [4, 4, 5, 5]]])


def choosing(most: int = 3, centre: int = 0) -> ir.Model:
    """A NonMaxSuppression of six boxes."""
    return prepared(CHOOSE.replace("MOST", str(most)).replace("CENTRE", str(centre)))


def only_node(text: str) -> ir.Node:
    """The first node of a graph."""
    return next(iter(prepared(text).graph))


def kept_single(boxes: np.ndarray, scores: list[float]) -> set[str]:
    """The nodes of `DETECT` that stay single to protect its decision."""
    plan = convert(ir.to_proto(parse(DETECT)), [{"features": boxes, "s": np.float32([[scores]])}]).plan
    return {name for name, decision in plan.decisions.items() if decision.reason is Reason.SELECTION}


class TestSuppression:
    """A NonMaxSuppression is protected where another selection is near."""

    def test_clear_choices_are_left_to_half(self):
        """With boxes and scores far apart, nothing is pinned."""
        assert set() == kept_single(APART, [0.9, 0.6, 0.4])

    @pytest.mark.parametrize(
        "scores", [[0.6001, 0.6, 0.4], [0.9, 0.6, 0.1820]], ids=["two scores close", "a score at the threshold"]
    )
    def test_close_scores(self, scores: list[float]):
        """If selected boxes may change order or be dropped, the nodes before the decision are pinned."""
        assert {"place", "weigh"} == kept_single(APART, scores)

    def test_close_overlap(self):
        """A box that overlaps another almost as much as is allowed may appear or vanish."""
        at_the_limit = np.float32([[[0, 0, 1, 1], [0, 0, 1, 0.503], [4, 4, 5, 5]]])

        assert {"place", "weigh"} == kept_single(at_the_limit, [0.9, 0.6, 0.4])

    def test_close_scores_of_a_suppressed_box_do_not_matter(self):
        """The order of rejected boxes does not matter."""
        boxes = np.float32([[[0, 0, 1, 1], [0, 0, 1, 0.95], [0, 0, 0.95, 1]]])

        assert set() == kept_single(boxes, [0.9, 0.6001, 0.6])

    def test_the_reason_names_both_tensors(self):
        """The evidence gives the errors of boxes and scores in half."""
        feeds = {"features": OVERLAPPING, "s": np.float32([[[0.6, 0.601, 0.4]]])}

        evidence = convert(ir.to_proto(parse(DETECT)), [feeds]).plan["weigh"].evidence

        assert evidence.startswith("`choose` decides by ")
        assert "`boxes` by up to" in evidence
        assert "`scores` by up to" in evidence

    def test_a_computed_threshold_is_unsafe(self):
        """With a computed threshold the safety is 0."""
        source = CHOOSE.replace("MOST", "3").replace("CENTRE", "0")
        source = source.replace("scores)", "scores, float least)").replace(", float least = {0.3}", "")
        tensors = {"boxes": np.zeros((1, 6, 4), np.float32), "scores": np.zeros((1, 1, 6), np.float32)}

        assert 0.0 == safety(only_node(source), tensors, {"scores": 1e-3})

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), most=st.sampled_from([1, 2, 6]), centre=st.booleans())
    def test_nothing_below_the_promised_distance_changes_the_answer(self, seed: int, most: int, centre: bool):
        """ONNX Runtime selects the same boxes if everything moves by less than half of the computed safety."""
        rng = np.random.default_rng(seed)
        model = choosing(most, int(centre))
        corner, size = rng.uniform(0, 1, (1, 6, 2)), rng.uniform(0.3, 0.8, (1, 6, 2))
        boxes = np.concatenate([corner, size if centre else corner + size], axis=-1).astype(np.float32)
        feeds = {"boxes": boxes, "scores": rng.uniform(0, 1, (1, 1, 6)).astype(np.float32)}
        times = safety(next(iter(model.graph)), feeds, {"boxes": 1e-3, "scores": 1e-3})
        move = np.float32(0.45e-3 * min(times, 100.0))

        moved = {name: array + rng.choice([-move, move], array.shape) for name, array in feeds.items()}

        assert run(model, feeds)["selected"].tolist() == run(model, moved)["selected"].tolist()

    def test_beyond_it_the_answer_changes(self):
        """The safety is tight: moved by as much, two scores change places."""
        model = choosing()
        boxes = np.float32([[[i, i, i + 0.5, i + 0.5] for i in range(6)]])
        feeds = {"boxes": boxes, "scores": np.float32([[[0.9, 0.8, 0.1, 0.1, 0.1, 0.1]]])}
        times = safety(next(iter(model.graph)), feeds, {"boxes": 1e-3, "scores": 1e-3})
        moved = feeds | {"scores": feeds["scores"] + 0.51e-3 * times * np.float32([[[-1, 1, 0, 0, 0, 0]]])}

        assert pytest.approx(100, rel=1e-3) == times
        assert run(model, feeds)["selected"].tolist() != run(model, np_floats(moved))["selected"].tolist()


def np_floats(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same in float32."""
    return {name: array.astype(np.float32) for name, array in feeds.items()}


class TestOthers:
    """All other operators that decide by numbers."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("(float[4] x) => (float[4] y) { y = Hardmax(x) }", ["x"]),
            ("(float[4] x) => (int64[1, n] y) { y = NonZero(x) }", ["x"]),
            ("(float[4] x) => (float[n] y) { y = Unique(x) }", ["x"]),
            ("(float[4] x, float[4] z) => (bool[4] y) { y = Greater(x, z) }", ["x", "z"]),
            ("(float[4] x, float z) => (int64[1, n] y) { b = Less(x, z) c = Not(b) y = NonZero(c) }", ["x", "z"]),
            ("(float[4] x, float z) => (float[4] y) { b = Less(x, z) y = Where(b, x, z) }", []),
            ("(float[4] x) => (bool[4] y) { y = Cast <to = 9> (x) }", ["x"]),
            ("(int64[4] x) => (int64[1, n] y) { y = NonZero(x) }", []),
            ("(float[4] x) => (float[4] y) { y = Relu(x) }", []),
        ],
    )
    def test_who_decides(self, text: str, expected: list[str]):
        """Operators that choose by numbers decide; a mask that only blends does not, nor do integers."""
        assert expected == [value.name for value in decides_by(only_node(f"m {text}"))]

    @pytest.mark.parametrize(
        ("text", "x", "times"),
        [
            ("(float[3] x) => (float[3] y) { y = Hardmax(x) }", [1.0, 3.0, 2.5], 5.0),
            ("(float[3] x) => (int64[1, n] y) { y = NonZero(x) }", [1.0, -0.3, 2.5], 3.0),
            ("(float[3] x) => (float[n] y) { y = Unique(x) }", [1.0, 1.0, 1.7], 7.0),
            ("(float[3] x) => (bool[3] y) <float z = {1.0}> { y = Greater(x, z) }", [1.2, 3.0, 0.5], 2.0),
            ("(float[3] x) => (bool[3] y) { y = Cast <to = 9> (x) }", [1.2, 3.0, 0.5], 5.0),
            ("(float[3] x) => (float[n] y) { y = Unique(x) }", [1.0, 1.0, 1.0], math.inf),
            ("(float[3] x) => (float[3] y) { y = Sign(x) }", [1.0, -0.3, 2.5], 3.0),
            ("(float[3] x) => (float[3] y) { y = Round(x) }", [1.0, 2.3, -0.9], 2.0),
            ("(float[3] x) => (float[3] y) { y = Floor(x) }", [1.2, 2.3, -0.6], 2.0),
            (f"(float[3] x) => (float[3] y) {{ y = {ML}.Binarizer <threshold = 1.5> (x) }}", [1.0, 2.5, 0.2], 5.0),
            (f"(float[3] x) => (float[1, 1] y) {{ y = {ML}.TreeEnsembleRegressor {TREE} (x) }}", [0.0, 9.0, 1.2], 3.0),
        ],
    )
    def test_how_near(self, text: str, x: list[float], times: float):
        """The safety is the distance to another result, in units of half's error (0.1 here)."""
        assert times == pytest.approx(safety(only_node(f"m {text}"), {"x": np.float32(x)}, {"x": 0.1}), rel=1e-5)

    def test_a_tensor_that_is_not_known_is_unsafe(self):
        """With a tensor that was not observed the safety is 0."""
        assert 0.0 == safety(only_node("m (float[3] x) => (float[3] y) { y = Hardmax(x) }"), {}, {"x": 0.1})

    def test_a_close_comparison_that_selects_is_protected(self):
        """A score close to a threshold that selects rows pins the nodes that compute it."""
        source = """m (float[4] x) => (float[n] y) <float k = {1.1}, float least = {0.55}>
        { [scale] s = Mul(x, k) [pick] b = Greater(s, least) [take] y = Compress(s, b) }"""

        def pinned(second: float) -> bool:
            plan = convert(ir.to_proto(parse(source)), [{"x": np.float32([0.1, second, 0.9, 0.2])}]).plan
            return plan["scale"].reason is Reason.SELECTION

        assert pinned(0.5003)
        assert not pinned(0.7)

    @pytest.mark.parametrize(("op", "close"), [("Round", 0.4552), ("Sign", 1e-5)])
    def test_steps_that_are_an_output_are_protected(self, op: str, close: float):
        """A number close to the next step pins the nodes that compute it, unless the model computes on with the step."""
        source = f"m (float[4] x) => (float[4] y) <float k = {{1.1}}> {{ [scale] s = Mul(x, k) [step] y = {op}(s) }}"
        inner = source.replace("y = ", "r = ").replace(" }", " [after] y = Mul(r, k) }")

        def is_protected(text: str, x: float) -> bool:
            feeds = {"x": np.float32([0.9, x, 1.0, -1.0])}
            return convert(ir.to_proto(parse(text)), [feeds]).plan["scale"].reason is Reason.SELECTION

        assert is_protected(source, close)
        assert not is_protected(source, 0.3)
        assert not is_protected(inner, close)
