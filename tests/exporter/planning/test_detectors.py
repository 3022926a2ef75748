"""Recognizing a detector by its outputs."""

from __future__ import annotations

import numpy as np
import pytest

from demi.accuracy.boxes import read_boxes
from demi.accuracy.budget import Limits, parse_budget
from demi.accuracy.detector import Columns
from demi.accuracy.matching import match
from demi.errors import InputError
from demi.exporter.planning.detectors import find_detectors
from demi.exporter.planning.judged_outputs import budget_for
from tests.models import prepared

APART = """m (float[n, 4] b, float[n] s, int64[n] c) => (float[k, 4] boxes, float[k] scores, int64[k] labels)
<int64[1] k = {2}>
{ best, order = TopK(s, k) boxes = Gather(b, order) labels = Gather(c, order) scores = Identity(best) }"""

COUNTED = """m (float[1, n, 4] b, float[1, n] s, float[1, n] c)
=> (int64[1] num_dets, float[1, k, 4] det_boxes, float[1, k] det_scores, float[1, k] det_classes, float[1, k, 3] masks)
<int64[1] k = {2}, int64[1] two = {2}, int64[1] last = {-1}, float[3] ones = {1.0, 1.0, 1.0}>
{
  det_scores, order = TopK(s, k)
  flat = Squeeze(order)
  det_boxes = Gather <axis = 1> (b, flat)
  det_classes = Gather <axis = 1> (c, flat)
  wide = Unsqueeze(det_scores, last)
  masks = Mul(wide, ones)
  some = Shape <start = 1, end = 2> (det_scores)
  num_dets = Identity(some)
}"""

PACKED = """m (float[n, COLUMNS] rows, float[n] s) => (float[k, COLUMNS] detections) <int64[1] k = {2}>
{ best, order = TopK(s, k) detections = Gather(rows, order) }"""

SELECTED = """m (float[1, n, 4] b, float[1, 1, n] s) => (int64[k, 3] selected) <int64 most = {3}>
{ selected = NonMaxSuppression(b, s, most) }"""

CORNERS, CENTRES = [[0, 0, 1, 1], [2, 2, 4, 3]], [[5, 5, 1, 1], [7, 7, 1, 2]]


def answer(boxes=CORNERS, scores=(0.9, 0.5), labels=(3, 1)):
    """Return the outputs of a detector with separate boxes, scores and classes."""
    return {"boxes": np.float32(boxes), "scores": np.float32(scores), "labels": np.int64(labels)}


def packed(*rows):
    """Return the outputs of a detector with everything in rows, and the detector read from them."""
    model = prepared(PACKED.replace("COLUMNS", str(len(rows[0]))))
    (found,) = find_detectors(model, [{"detections": np.float32(rows)}])
    return found


class TestApart:
    """Boxes, scores and classes in separate outputs."""

    def test_roles(self):
        """Integers are classes; other floats with one number a box are scores."""
        (found,) = find_detectors(prepared(APART), [answer()])

        assert ("boxes", "scores", "labels", None) == (found.boxes, found.scores, found.classes, found.count)
        assert not found.by_centre

    def test_centres(self):
        """Numbers that cannot be two corners are a centre and a size."""
        (found,) = find_detectors(prepared(APART), [answer(CENTRES)])

        assert found.by_centre

    def test_float_classes_and_a_count(self):
        """Classes may be whole floats, the number of boxes may be an output, and masks may be present."""
        outputs = {
            "num_dets": np.int64([2]),
            "det_boxes": np.float32([CORNERS]),
            "det_scores": np.float32([[0.9, 0.5]]),
            "det_classes": np.float32([[3, 1]]),
            "masks": np.ones((1, 2, 3), np.float32),
        }
        (found,) = find_detectors(prepared(COUNTED), [outputs])

        assert ("det_boxes", "det_scores", "det_classes") == (found.boxes, found.scores, found.classes)
        assert ("num_dets", ("masks",)) == (found.count, found.others)

    def test_boxes_that_nothing_orders(self):
        """A regression of boxes in a fixed order is compared as numbers."""
        plain = APART.replace("best, order = TopK(s, k) ", "order = Identity(c) best = Identity(s) ")

        assert () == find_detectors(prepared(plain), [answer()])


class TestPacked:
    """Rows that hold boxes, scores and classes."""

    @pytest.mark.parametrize(
        ("rows", "columns"),
        [
            ([[0, 0, 30, 30, 0.9, 2], [5, 5, 9, 9, 0.4, 0]], Columns(0, 4, 5)),
            ([[1, 0.9, 0, 0, 30, 30], [0, 0.4, 5, 5, 9, 9]], Columns(2, 1, 0)),
            ([[0, 1.5, 2, 30, 31, 4, 0.9], [0, 5, 5, 9, 9, 1, 0.4]], Columns(1, 6, 5, image=0)),
            ([[0, 3, 0.9, 0.1, 0.1, 0.4, 0.5], [0, 1, 0.4, 0.2, 0.2, 0.3, 0.6]], Columns(3, 2, 1, image=0)),
            ([[0, 0, 30, 30, 0.9, 2, 0.3, -2], [5, 5, 9, 9, 0.4, 0, 7, 1.5]], Columns(0, 4, 5)),
        ],
        ids=["YOLO end to end", "class first", "YOLOv7", "SSD", "with masks"],
    )
    def test_columns(self, rows, columns):
        """The numbers determine the meaning of each column."""
        assert columns == packed(*rows).columns

    def test_features_are_no_boxes(self):
        """Rows of any numbers that a ranking picks are not a detector's."""
        model = prepared(PACKED.replace("COLUMNS", "6"))

        assert () == find_detectors(model, [{"detections": np.float32([[0.1, -2, 3.3, 4, 5.2, 6.7]])}])

    def test_most(self):
        """A ranking that fills all rows gives the maximum number of boxes."""
        assert 2 == packed([0, 0, 30, 30, 0.9, 2], [5, 5, 9, 9, 0.4, 0]).most


def test_selected_places():
    """The selection of a NonMaxSuppression is a list of indices."""
    (found,) = find_detectors(prepared(SELECTED), [{"selected": np.int64([[0, 0, 1]])}])

    assert found.places


class TestBudget:
    """The budget for a model's outputs."""

    def test_a_detector_has_a_share_of_boxes(self):
        """Recognized boxes have limits by default."""
        limits = budget_for(prepared(APART), [answer()], parse_budget([])).limits("boxes")

        assert (0.01, 0.25) == (limits.boxes, limits.score)

    def test_scores_below_the_floor(self):
        """If no box of the samples reaches the default score threshold, all boxes count."""
        low = answer(scores=(0.2, 0.1))

        assert 0.0 == budget_for(prepared(APART), [low], parse_budget([])).limits("boxes").score
        assert 0.9 == budget_for(prepared(APART), [low], parse_budget(["boxes=0.1,score=0.9"])).limits("boxes").score

    def test_declared(self):
        """The user may declare an output as boxes although nothing in the graph decides their order."""
        plain = prepared(APART.replace("best, order = TopK(s, k) ", "order = Identity(c) best = Identity(s) "))
        budget = budget_for(plain, [answer()], parse_budget(["boxes:boxes=0.05"]))

        assert ["boxes"] == [detector.boxes for detector in budget.detectors]
        assert 0.05 == budget.limits("boxes").boxes

    def test_declared_where_no_boxes_are(self):
        """An output that cannot hold boxes is named with its shape."""
        model = prepared("m (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }")

        with pytest.raises(InputError, match=r"no boxes can be read from output `y` \(2x3\)"):
            budget_for(model, [{"y": np.zeros((2, 3), np.float32)}], parse_budget(["y:boxes=0.05"]))
        with pytest.raises(InputError, match="no output looks like a detector's"):
            budget_for(model, [{"y": np.zeros((2, 3), np.float32)}], parse_budget(["boxes=0.05"]))

    def test_choices_may_differ_in_a_few_elements(self):
        """Results of an argmax, moved or not, are choices; integers used in arithmetic are not."""
        model = prepared("""m (float[n, 3] x) => (int32[n] chosen, int64[n] counted) <int64 one = {1}>
        { best = ArgMax <axis = 1, keepdims = 0> (x) chosen = Cast <to = 6> (best) counted = Add(best, one) }""")
        outputs = {"chosen": np.zeros(2, np.int32), "counted": np.zeros(2, np.int64)}
        budget = budget_for(model, [outputs], parse_budget([]))

        assert (0.99, None) == (budget.limits("chosen").agree, budget.limits("counted").agree)
        assert 1.0 == budget_for(model, [outputs], parse_budget(["chosen:agree=1"])).limits("chosen").agree

    def test_choices_in_a_body(self):
        """A Scan's output is a choice if its body chooses it, as a Viterbi path's back-pointers are."""
        model = prepared("""paths (float[n, 4] start, float[t, n, 4] steps) => (float[n, 4] last, int64[t, n] back)
        { last, back = Scan<num_scan_inputs = 1, body = b (float[n, 4] state, float[n, 4] step)
          => (float[n, 4] next, int64[n] from) { next = Add(state, step) from = ArgMax<axis = 1, keepdims = 0>(next) }>
          (start, steps) }""")
        outputs = {"last": np.zeros((2, 4), np.float32), "back": np.zeros((3, 2), np.int64)}
        budget = budget_for(model, [outputs], parse_budget([]))

        assert (None, 0.99) == (budget.limits("last").agree, budget.limits("back").agree)

    def test_quantized_outputs_count_in_steps(self):
        """A picture of bytes may be a few steps off; bytes that hold a few small numbers must be equal."""
        model = prepared("m (float[n] x) => (uint8[n] y) { r = Round(x) y = Cast <to = 2> (r) }")

        def steps(*numbers):
            return budget_for(model, [{"y": np.uint8(numbers)}], parse_budget([])).limits("y").steps

        assert 8.0 == steps(0, 200, 100)
        assert steps(0, 1, 2) is None


QUERIES = """m (float[1, n, 4] b, float[1, n, 3] l, float[1, n] s) => (float[1, k, 4] pred_boxes, float[1, k, 3] logits)
<int64[1] k = {2}>
{
  best, order = TopK(s, k)
  flat = Squeeze(order)
  pred_boxes = Gather <axis = 1> (b, flat)
  logits = Gather <axis = 1> (l, flat)
}"""


def test_queries_with_a_logit_for_each_class():
    """Boxes beside a table of logits: the best class of each counts, whatever query it came from."""
    want = {
        "pred_boxes": np.float32([[[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1]]]),
        "logits": np.float32([[[3, -1, -2], [-4, 2, 0]]]),
    }
    (found,) = find_detectors(prepared(QUERIES), [want])
    swapped = {name: array[:, ::-1] for name, array in want.items()}

    assert ("logits", True, True) == (found.scores, found.logits, found.by_centre)
    assert [0, 1] == read_boxes(found, want).classes.tolist()
    assert () == match(found, want, swapped, Limits()).changes
