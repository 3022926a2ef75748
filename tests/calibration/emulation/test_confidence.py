"""How far the error of new inputs may be from that of the samples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.calibration.emulation.confidence import ALONE, MOST, upper_bound


def test_samples_that_are_alike():
    """Where each sample adds the same, nothing else is to be expected."""
    assert 2.0 == pytest.approx(upper_bound([1.0, 1.0, 1.0, 1.0]))


def test_one_that_makes_all_of_the_error():
    """Among 16 samples another such one is likely: the bound is 1.66 times the error."""
    assert math.sqrt(1 + 1.75) == pytest.approx(upper_bound([1.0, *[0.0] * 15]))


def test_a_single_sample():
    """Nothing is known of its spread."""
    assert ALONE == upper_bound([1.0])


def test_two_samples():
    """Of two that differ, Student's t says more than anybody knows: the bound is five thirds of the error."""
    assert MOST == pytest.approx(upper_bound([1.0, 0.0]))


def test_not_finite():
    """One infinite error is infinite."""
    assert math.inf == upper_bound([1.0, math.inf])


def test_no_samples():
    """There is no bound without samples."""
    with pytest.raises(ValueError, match="no samples"):
        upper_bound([])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_never_below_the_samples(squares):
    """The bound is at least the error that was seen."""
    assert upper_bound(squares) >= math.sqrt(math.fsum(squares)) * (1 - 1e-12)


def test_covers():
    """Of the means of exponential draws (as heavy-tailed as squared errors are), nine in ten lie below the bound."""
    rng = np.random.default_rng(0)
    draws = rng.exponential(1.0, (2000, 24))

    covered = [upper_bound(list(row)) >= math.sqrt(24.0) for row in draws]

    assert np.mean(covered) > 0.88
