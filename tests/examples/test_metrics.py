"""The examples' own metrics, on answers small enough to see whole."""

from __future__ import annotations

import numpy as np
import pytest

from examples.domains.driving import SCORE, matched
from examples.domains.recommendation import hits

BOX = [10.0, 10.0, 30.0, 30.0]
AWAY = [50.0, 50.0, 70.0, 70.0]


def f1(found: list[tuple[list[float], float, int]], true: list[tuple[int, list[float]]]) -> float:
    """Return the F1 of one picture, from (box, score, class) and (class, box)."""
    labels = np.full((1, 3, 5), -1.0)
    for row, (kind, box) in zip(labels[0], true, strict=False):
        row[:] = [kind, *box]
    outputs = {
        "boxes": np.array([[box for box, _, _ in found]]).reshape(1, -1, 4),
        "scores": np.array([[score for _, score, _ in found]]),
        "classes": np.array([[kind for _, _, kind in found]]),
    }
    (only,) = matched(outputs, labels)
    return float(only)


class TestBoxes:
    """The F1 of a picture's boxes."""

    def test_all_found(self):
        """Every box has its partner."""
        assert 1.0 == f1([(BOX, 0.9, 0), (AWAY, 0.8, 1)], [(1, AWAY), (0, BOX)])

    def test_another_class(self):
        """The right place does not help."""
        assert 0.0 == f1([(BOX, 0.9, 1)], [(0, BOX)])

    def test_found_twice(self):
        """The second box on the same thing is wrong."""
        assert pytest.approx(2 / 3) == f1([(BOX, 0.9, 0), (BOX, 0.8, 0)], [(0, BOX)])

    def test_too_little_overlap(self):
        """Half of the width aside, the IoU is a third."""
        assert 0.0 == f1([([20.0, 10.0, 40.0, 30.0], 0.9, 0)], [(0, BOX)])

    def test_low_scores_do_not_count(self):
        """They are as if they were not there."""
        assert 1.0 == f1([(BOX, 0.9, 0), (AWAY, SCORE - 0.01, 1)], [(0, BOX)])

    def test_nothing_there_and_nothing_found(self):
        """An empty road is right, and anything found on it is wrong."""
        assert 1.0 == f1([(BOX, 0.1, 0)], [])
        assert 0.0 == f1([(BOX, 0.9, 0)], [])


class TestHits:
    """The ten best films."""

    def test_among_the_ten(self):
        """The tenth counts, the eleventh does not."""
        scores = np.arange(20.0)[None]

        assert [1.0] == hits({"scores": scores}, np.array([10])).tolist()
        assert [0.0] == hits({"scores": scores}, np.array([9])).tolist()

    def test_ties_count_against_it(self):
        """A model that gives every film the same score finds nothing."""
        assert [0.0] == hits({"scores": np.zeros((1, 20))}, np.array([3])).tolist()
