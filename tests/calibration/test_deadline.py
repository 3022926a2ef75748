"""Deadlines: how much of the time is used."""

import math

from demi.calibration.deadline import Deadline


def ticking(*times):
    """A clock that shows these times, one after the other."""
    left = iter(times)
    return lambda: float(next(left))


def test_share_that_is_used():
    """A quarter of the time, then all of it."""
    deadline = Deadline(8, ticking(100, 102, 108))

    assert 0.25 == deadline.used
    assert deadline.passed


def test_without_an_end():
    """No deadline by default, and no time at all when none is given."""
    assert not Deadline(clock=ticking(0, 1e9)).passed
    assert math.inf == Deadline().seconds
    assert Deadline(0).passed
