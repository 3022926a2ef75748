"""Boxes of two answers beside each other: what stays, appears, vanishes and swaps, whatever their order."""

from __future__ import annotations

import numpy as np
import pytest

from demi.accuracy.boxes import overlaps, read_boxes
from demi.accuracy.budget import Limits
from demi.accuracy.detector import Columns, Detector
from demi.accuracy.matching import MOST_BOXES, describe_changes, match

ROWS = Detector("d", columns=Columns(0, 4, 5))
APART = Detector("boxes", "scores", "labels")
CAT, DOG, BIRD = [0, 0, 10, 10, 0.9, 1], [20, 20, 30, 30, 0.8, 2], [40, 0, 50, 10, 0.5, 1]


def rows(*boxes):
    """Packed rows of one image: corners, score, class."""
    return {"d": np.array(boxes, np.float32).reshape(1, -1, 6)}


def changes(want, got, detector=ROWS, **limits):
    """What changed, in words."""
    return [str(change) for change in match(detector, rows(*want), rows(*got), Limits(**limits)).changes]


class TestMatching:
    """Pairs are found by overlap, within a class first."""

    def test_order_does_not_matter(self):
        """The same boxes in another order are the same answer, and rows are aligned by box."""
        want, got = rows(CAT, DOG, BIRD), rows(BIRD, CAT, DOG)
        found = match(ROWS, want, got, Limits())

        assert () == found.changes
        assert 3 == found.counted
        assert np.array_equal(*found.aligned(want["d"], got["d"]))

    def test_a_box_vanishes(self):
        """It is named with its class and its score in FP32."""
        assert ["class 2 vanishes at score 0.8"] == changes([CAT, DOG], [CAT])

    def test_a_box_appears(self):
        """It is named with its class and its score in half."""
        assert ["class 1 appears at score 0.5"] == changes([CAT], [CAT, BIRD])

    def test_a_class_swaps(self):
        """The same place with another class is one swap, no loss and no gain."""
        other = [*CAT[:4], 0.85, 2]

        assert ["class 1 at score 0.9 becomes class 2 at score 0.85"] == changes([CAT], [other])

    def test_two_classes_in_one_place(self):
        """Where both answers hold both classes nothing swaps."""
        other = [*CAT[:4], 0.7, 2]

        assert [] == changes([CAT, other], [other, CAT])

    def test_a_moved_box(self):
        """A little further is the same box; so far that the overlap is lost, it is another."""
        near, far = [1, 0, 11, 10, 0.9, 1], [6, 0, 16, 10, 0.9, 1]

        assert [] == changes([CAT], [near])
        assert 2 == len(changes([CAT], [far]))
        assert [] == changes([CAT], [far], iou=0.2)

    def test_the_best_overlap_is_taken(self):
        """Of two candidates the one that overlaps more is the partner, and the other one is new."""
        aside = [3, 0, 13, 10, 0.7, 1]

        assert ["class 1 appears at score 0.7"] == changes([CAT], [aside, CAT])

    def test_images_do_not_mix(self):
        """A box that moved to another image of the batch vanished there and appeared here."""
        want = {"d": np.array([[CAT], [DOG]], np.float32)}
        got = {"d": np.array([[DOG], [CAT]], np.float32)}

        assert [0, 0, 1, 1] == [change.image for change in match(ROWS, want, got, Limits()).changes]

    def test_no_boxes(self):
        """Two empty answers agree, and there is nothing to count."""
        assert 0 == match(ROWS, rows(), rows(), Limits()).counted


class TestScores:
    """Boxes that nobody looks at do not count, and marginal ones are listed apart."""

    def test_below_the_floor(self):
        """Boxes below the least score may come and go."""
        assert [] == changes([CAT, [*DOG[:4], 0.1, 2]], [CAT])
        assert ["class 2 vanishes at score 0.1"] == changes([CAT, [*DOG[:4], 0.1, 2]], [CAT], score=0.05)

    def test_a_score_that_slips_below_the_floor(self):
        """The box is still there for whoever looks a little lower."""
        assert [] == changes([[*CAT[:4], 0.26, 1]], [[*CAT[:4], 0.24, 1]])

    def test_a_score_that_falls_far(self):
        """A box whose score fell below half the floor is gone."""
        assert ["class 1 vanishes at score 0.9"] == changes([CAT], [[*CAT[:4], 0.1, 1]])

    def test_at_the_floor(self):
        """Hardly above the least score a box is marginal, and not counted."""
        found = match(ROWS, rows(CAT, [*DOG[:4], 0.255, 2]), rows(CAT), Limits())

        assert ["class 2 vanishes at score 0.255 (marginal)"] == [str(change) for change in found.changes]
        assert (0, 1) == (found.changed, found.counted)

    def test_nearly_suppressed(self):
        """A box that overlaps a better one by about as much as the model suppresses is marginal."""
        detector = Detector("d", columns=Columns(0, 4, 5), overlap=0.45)
        edge, clear = [3.8, 0, 13.8, 10, 0.7, 1], [4.5, 0, 14.5, 10, 0.7, 1]

        assert overlaps(np.array([CAT[:4]]), np.array([edge[:4]]))[0, 0] == pytest.approx(0.449, abs=1e-3)
        assert ["class 1 appears at score 0.7 (marginal)"] == changes([CAT], [CAT, edge], detector)
        assert ["class 1 appears at score 0.7"] == changes([CAT], [CAT, clear], detector)

    def test_the_last_rank(self):
        """Where no more boxes fit, the lowest of them may be another."""
        detector = Detector("d", columns=Columns(0, 4, 5), most=2)
        third = [60, 60, 70, 70, 0.505, 1]

        found = changes([CAT, BIRD], [CAT, third], detector)

        assert ["class 1 vanishes at score 0.5 (marginal)", "class 1 appears at score 0.505 (marginal)"] == found

    def test_told(self):
        """A line counts and names what changed."""
        found = match(ROWS, rows(CAT, DOG, [*BIRD[:4], 0.252, 1]), rows(CAT), Limits())

        assert (
            "1 of 2 boxes changed (marginal: 1): class 2 vanishes at score 0.8; "
            "class 1 vanishes at score 0.252 (marginal)"
        ) == describe_changes(found.changes, found.counted, found.changed)


class TestReading:
    """Boxes are read from every layout that is known."""

    def test_apart(self):
        """Boxes, scores and classes in outputs of their own."""
        outputs = {
            "boxes": np.float32([[0, 0, 1, 1], [2, 2, 3, 3]]),
            "scores": np.float32([0.5, 0.25]),
            "labels": np.int64([3, 4]),
        }
        found = read_boxes(APART, outputs)

        assert [0.5, 0.25] == found.scores.tolist()
        assert [3, 4] == found.classes.tolist()

    def test_counted_rows(self):
        """Rows behind the number of boxes are filling, image by image."""
        detector = Detector("boxes", "scores", "labels", "num")
        outputs = {
            "boxes": np.ones((2, 3, 4), np.float32),
            "scores": np.ones((2, 3), np.float32),
            "labels": np.ones((2, 3), np.int32),
            "num": np.int32([[1], [2]]),
        }

        assert [0, 3, 4] == read_boxes(detector, outputs).rows.tolist()

    def test_images_in_a_column(self):
        """Rows that begin with their image."""
        detector = Detector("d", columns=Columns(1, 6, 5, image=0))
        outputs = {"d": np.float32([[0, 0, 0, 1, 1, 7, 0.5], [3, 0, 0, 1, 1, 8, 0.5]])}

        assert [0, 3] == read_boxes(detector, outputs).images.tolist()

    def test_centres(self):
        """Centre and size become corners."""
        detector = Detector("boxes", "scores", by_centre=True)
        outputs = {"boxes": np.float32([[5, 5, 2, 4]]), "scores": np.float32([1])}

        assert [[4, 3, 6, 7]] == read_boxes(detector, outputs).corners.tolist()

    def test_filling_of_zeros(self):
        """A row of zeros is no box."""
        assert [0] == read_boxes(ROWS, rows(CAT, [0] * 6)).rows.tolist()

    def test_numbers_that_are_not_finite(self):
        """A row with NaN is no box either."""
        assert [0] == read_boxes(ROWS, rows(CAT, [*DOG[:4], np.nan, 2])).rows.tolist()

    def test_selected_places(self):
        """The places a NonMaxSuppression selects are boxes without scores."""
        detector = Detector("selected", places=True)
        want, got = {"selected": np.int64([[0, 1, 7], [0, 1, 9]])}, {"selected": np.int64([[0, 1, 9]])}

        assert ["class 1 vanishes"] == [str(change) for change in match(detector, want, got, Limits()).changes]


def test_many_boxes():
    """Of thousands of boxes the best are matched, so that all pairs fit into memory."""
    count = MOST_BOXES + 500
    low = np.arange(count, dtype=np.float32)[:, None] * 10
    scores = np.linspace(0.9, 0.3, count)[:, None]
    table = np.concatenate([low, low, low + 5, low + 5, scores, np.ones((count, 1))], axis=1).astype(np.float32)

    found = match(ROWS, {"d": table}, {"d": table[::-1]}, Limits())

    assert (MOST_BOXES, ()) == (found.counted, found.changes)
