"""Matching of two answers' boxes: unchanged, new, missing and swapped ones, in any order."""

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
    """Return packed rows of one image: corners, score, class."""
    return {"d": np.array(boxes, np.float32).reshape(1, -1, 6)}


def changes(want, got, detector=ROWS, **limits):
    """Return the changes as text."""
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
        """A missing box is named with its class and its score in FP32."""
        assert ["class 2 vanishes at score 0.8"] == changes([CAT, DOG], [CAT])

    def test_a_box_appears(self):
        """A new box is named with its class and its score in half."""
        assert ["class 1 appears at score 0.5"] == changes([CAT], [CAT, BIRD])

    def test_a_class_swaps(self):
        """Another class at the same place is one swap, neither missing nor new."""
        other = [*CAT[:4], 0.85, 2]

        assert ["class 1 at score 0.9 becomes class 2 at score 0.85"] == changes([CAT], [other])

    def test_two_classes_in_one_place(self):
        """If both answers have both classes at one place, nothing is swapped."""
        other = [*CAT[:4], 0.7, 2]

        assert [] == changes([CAT, other], [other, CAT])

    def test_a_moved_box(self):
        """A slightly moved box is the same; one without enough overlap is another box."""
        near, far = [1, 0, 11, 10, 0.9, 1], [6, 0, 16, 10, 0.9, 1]

        assert [] == changes([CAT], [near])
        assert 2 == len(changes([CAT], [far]))
        assert [] == changes([CAT], [far], iou=0.2)

    def test_the_best_overlap_is_taken(self):
        """Of two candidates the one with the larger overlap is the partner, and the other one is new."""
        aside = [3, 0, 13, 10, 0.7, 1]

        assert ["class 1 appears at score 0.7"] == changes([CAT], [aside, CAT])

    def test_images_do_not_mix(self):
        """A box in another image of the batch is missing in one image and new in the other."""
        want = {"d": np.array([[CAT], [DOG]], np.float32)}
        got = {"d": np.array([[DOG], [CAT]], np.float32)}

        assert [0, 0, 1, 1] == [change.image for change in match(ROWS, want, got, Limits()).changes]

    def test_no_boxes(self):
        """Two empty answers agree, with no boxes counted."""
        assert 0 == match(ROWS, rows(), rows(), Limits()).counted


class TestScores:
    """Boxes below the minimum score do not count, and marginal ones are listed separately."""

    def test_below_the_minimum_score(self):
        """Boxes below the minimum score are ignored."""
        assert [] == changes([CAT, [*DOG[:4], 0.1, 2]], [CAT])
        assert ["class 2 vanishes at score 0.1"] == changes([CAT, [*DOG[:4], 0.1, 2]], [CAT], score=0.05)

    def test_score_just_below_the_minimum(self):
        """A box whose score falls just below the minimum is still matched."""
        assert [] == changes([[*CAT[:4], 0.26, 1]], [[*CAT[:4], 0.24, 1]])

    def test_score_far_below_the_minimum(self):
        """A box whose score fell below half the minimum is missing."""
        assert ["class 1 vanishes at score 0.9"] == changes([CAT], [[*CAT[:4], 0.1, 1]])

    def test_marginal_score(self):
        """A box just above the minimum score is marginal, and not counted."""
        found = match(ROWS, rows(CAT, [*DOG[:4], 0.255, 2]), rows(CAT), Limits())

        assert ["class 2 vanishes at score 0.255 (marginal)"] == [str(change) for change in found.changes]
        assert (0, 1) == (found.changed, found.counted)

    def test_nearly_suppressed(self):
        """A box that overlaps a better one by about the suppression threshold is marginal."""
        detector = Detector("d", columns=Columns(0, 4, 5), overlap=0.45)
        edge, clear = [3.8, 0, 13.8, 10, 0.7, 1], [4.5, 0, 14.5, 10, 0.7, 1]

        assert overlaps(np.array([CAT[:4]]), np.array([edge[:4]]))[0, 0] == pytest.approx(0.449, abs=1e-3)
        assert ["class 1 appears at score 0.7 (marginal)"] == changes([CAT], [CAT, edge], detector)
        assert ["class 1 appears at score 0.7"] == changes([CAT], [CAT, clear], detector)

    def test_the_last_rank(self):
        """If the output has no free rows, a change of the lowest box is marginal."""
        detector = Detector("d", columns=Columns(0, 4, 5), most=2)
        third = [60, 60, 70, 70, 0.505, 1]

        found = changes([CAT, BIRD], [CAT, third], detector)

        assert ["class 1 vanishes at score 0.5 (marginal)", "class 1 appears at score 0.505 (marginal)"] == found

    def test_text_of_changes(self):
        """The text counts and names the changes."""
        found = match(ROWS, rows(CAT, DOG, [*BIRD[:4], 0.252, 1]), rows(CAT), Limits())

        assert (
            "1 of 2 boxes changed (marginal: 1): class 2 vanishes at score 0.8; "
            "class 1 vanishes at score 0.252 (marginal)"
        ) == describe_changes(found.changes, found.counted, found.changed)


class TestReading:
    """Boxes are read from all supported layouts."""

    def test_separate_outputs(self):
        """Boxes, scores and classes may be separate outputs."""
        outputs = {
            "boxes": np.float32([[0, 0, 1, 1], [2, 2, 3, 3]]),
            "scores": np.float32([0.5, 0.25]),
            "labels": np.int64([3, 4]),
        }
        found = read_boxes(APART, outputs)

        assert [0.5, 0.25] == found.scores.tolist()
        assert [3, 4] == found.classes.tolist()

    def test_counted_rows(self):
        """Rows beyond the number of boxes are padding, for each image."""
        detector = Detector("boxes", "scores", "labels", "num")
        outputs = {
            "boxes": np.ones((2, 3, 4), np.float32),
            "scores": np.ones((2, 3), np.float32),
            "labels": np.ones((2, 3), np.int32),
            "num": np.int32([[1], [2]]),
        }

        assert [0, 3, 4] == read_boxes(detector, outputs).rows.tolist()

    def test_images_in_a_column(self):
        """Rows may begin with the index of their image."""
        detector = Detector("d", columns=Columns(1, 6, 5, image=0))
        outputs = {"d": np.float32([[0, 0, 0, 1, 1, 7, 0.5], [3, 0, 0, 1, 1, 8, 0.5]])}

        assert [0, 3] == read_boxes(detector, outputs).images.tolist()

    def test_centres(self):
        """Centre and size are converted to corners."""
        detector = Detector("boxes", "scores", by_centre=True)
        outputs = {"boxes": np.float32([[5, 5, 2, 4]]), "scores": np.float32([1])}

        assert [[4, 3, 6, 7]] == read_boxes(detector, outputs).corners.tolist()

    def test_padding_of_zeros(self):
        """A row of zeros is not a box."""
        assert [0] == read_boxes(ROWS, rows(CAT, [0] * 6)).rows.tolist()

    def test_numbers_that_are_not_finite(self):
        """A row with NaN is not a box."""
        assert [0] == read_boxes(ROWS, rows(CAT, [*DOG[:4], np.nan, 2])).rows.tolist()

    def test_selected_rows(self):
        """The rows that a NonMaxSuppression selects are boxes without scores."""
        detector = Detector("selected", places=True)
        want, got = {"selected": np.int64([[0, 1, 7], [0, 1, 9]])}, {"selected": np.int64([[0, 1, 9]])}

        assert ["class 1 vanishes"] == [str(change) for change in match(detector, want, got, Limits()).changes]


def test_many_boxes():
    """Of thousands of boxes only the best are matched, so that all pairs fit into memory."""
    count = MOST_BOXES + 500
    low = np.arange(count, dtype=np.float32)[:, None] * 10
    scores = np.linspace(0.9, 0.3, count)[:, None]
    table = np.concatenate([low, low, low + 5, low + 5, scores, np.ones((count, 1))], axis=1).astype(np.float32)

    found = match(ROWS, {"d": table}, {"d": table[::-1]}, Limits())

    assert (MOST_BOXES, ()) == (found.counted, found.changes)
