"""Criteria of the soak test."""

from __future__ import annotations

import numpy as np
import pytest

from bench.serving.turns import Turn, Turns
from bench.soak import SLOWEST_REFUSAL_S, Tally, is_right, report_on


def tally(**changes: object) -> Tally:
    """Return the counts of a good soak, with some of them changed."""
    return Tally(**{"good_s": [0.01] * 100, "refused_s": [0.001] * 300, **changes})  # type: ignore[arg-type]


def passed(found: Tally, early: float = 100.0, late: float = 101.0) -> object:
    """Return whether the soak passed."""
    return report_on("m", 100.0, 60.0, found, early, late)["passed"]


def test_a_good_one():
    """Correct answers, quick refusals and constant memory pass."""
    assert passed(tally())


@pytest.mark.parametrize(
    "changes",
    [
        {"wrong": 1},
        {"failed": 1},
        {"good_s": []},
        {"refused_s": []},
        {"refused_s": [0.001] * 90 + [2 * SLOWEST_REFUSAL_S] * 10},
    ],
    ids=["a wrong answer", "a failure", "no answer", "no overload", "slow refusals"],
)
def test_bad_ones(changes):
    """Each violation alone fails."""
    assert not passed(tally(**changes))


def test_growth():
    """Growth of more than a twentieth fails, and so does memory that was not measured."""
    assert not passed(tally(), 100.0, 106.0)
    assert not passed(tally(), 0.0, 106.0)


@pytest.mark.parametrize(
    ("found", "right"),
    [([1, 2, 3], True), ([1.00001, 2, 3], True), ([1, 2, 4], False), ([2, 3], False), ([], False)],
)
def test_answers_are_compared(found, right):
    """Rounding errors are allowed; other values, and another number of them, are not."""
    body = b"{}" + np.array(found, np.float32).tobytes()

    assert right is is_right(body, np.array([1, 2, 3], np.float32))


def test_ratios_are_taken_round_by_round():
    """Ratios are taken per round, so that a round in which both were slow counts normally."""
    mine = Turns([Turn([0.1] * count, 1.0, 0.5) for count in (100, 10, 100)])
    other = Turns([Turn([0.1] * count, 1.0, 0.5) for count in (50, 5, 80)])

    assert 2.0 == mine.ratio(other)
