"""Upper confidence bound on the error of new inputs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.calibration.emulation.confidence import ALONE, MOST, hardest_alone, upper_bound


def test_equal_samples():
    """If all samples have the same error, the bound equals it."""
    assert 2.0 == pytest.approx(upper_bound([1.0, 1.0, 1.0, 1.0]))


def test_one_sample_with_the_whole_error():
    """If one of 16 samples causes the whole error, the bound is 1.66 times the error."""
    assert math.sqrt(1 + 1.75) == pytest.approx(upper_bound([1.0, *[0.0] * 15]))


def test_a_single_sample():
    """A single sample has no spread, so that the bound is a fixed multiple of its error."""
    assert ALONE == upper_bound([1.0])


def test_two_samples():
    """For two samples that differ, the bound is five thirds of the error, far below Student's t."""
    assert MOST == pytest.approx(upper_bound([1.0, 0.0]))


def test_not_finite():
    """The bound of an infinite error is infinite."""
    assert math.inf == upper_bound([1.0, math.inf])


def test_no_samples():
    """Without samples there is no bound."""
    with pytest.raises(ValueError, match="no samples"):
        upper_bound([])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_never_below_the_samples(squares):
    """The bound is at least the observed error."""
    assert upper_bound(squares) >= math.sqrt(math.fsum(squares)) * (1 - 1e-12)


def test_the_hardest_sample_alone():
    """A request like the hardest sample has its error: twice that of all four if it causes the whole error."""
    assert 2.0 == hardest_alone([1.0, 0.0, 0.0, 0.0])
    assert 2.0 == hardest_alone([1.0, 1.0, 1.0, 1.0])
    assert math.inf == hardest_alone([1.0, math.inf])


def test_covers():
    """Of the means of exponential draws (as heavy-tailed as squared errors are), nine in ten lie below the bound."""
    rng = np.random.default_rng(0)
    draws = rng.exponential(1.0, (2000, 24))

    covered = [upper_bound(list(row)) >= math.sqrt(24.0) for row in draws]

    assert np.mean(covered) > 0.88
