"""Deadlines: the share of the time that is used."""

import math

from demi.calibration.deadline import Deadline


def ticking(*times):
    """Return a clock that shows these times, one after the other."""
    left = iter(times)
    return lambda: float(next(left))


def test_used_share():
    """A quarter of the time is used, then all of it."""
    deadline = Deadline(8, ticking(100, 102, 108))

    assert 0.25 == deadline.used
    assert deadline.passed


def test_without_an_end():
    """By default there is no deadline; a limit of zero seconds has passed at once."""
    assert not Deadline(clock=ticking(0, 1e9)).passed
    assert math.inf == Deadline().seconds
    assert Deadline(0).passed
