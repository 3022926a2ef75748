"""What is noticed about the batches that go through a model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from demi.server.scheduling.inspection import LOOK_AT, Bounds, is_finite

FLOATS = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]), hnp.array_shapes(max_dims=3, min_side=0, max_side=8)
)


@given(FLOATS)
def test_finite_is_what_numpy_says(values):
    """Whatever the float type and the values, the quick look agrees with NumPy's own."""
    assert bool(np.isfinite(values).all()) == is_finite(values)


def test_a_sum_that_overflows_is_not_an_infinity():
    """Large finite values whose sum is infinite are finite."""
    assert is_finite(np.full(100, 3e38, np.float32))
    assert is_finite(np.array([3e38, 3e38, -3e38, -3e38], np.float32))


def test_opposite_infinities_do_not_cancel():
    """Plus and minus infinity are two infinities."""
    assert not is_finite(np.array([np.inf, -np.inf], np.float32))


@pytest.mark.parametrize("values", [np.array([1, 2]), np.array([True]), np.array(["a"], object)])
def test_other_types_are_finite(values):
    """Integers, booleans and strings have no NaN."""
    assert is_finite(values)


def test_bounds_leave_the_margin_of_the_plan():
    """One and a half times the largest magnitude is no news; more is, on either side, and so is NaN."""
    bounds = Bounds.around(-1.0, 2.0)

    assert bounds.hold(np.array([-2.0, 3.0]))
    assert not bounds.hold(np.array([3.01]))
    assert not bounds.hold(np.array([-2.01]))
    assert not bounds.hold(np.array([0.0, np.nan]))
    assert bounds.hold(np.zeros((0, 3)))


def test_only_the_first_rows_of_a_large_batch_are_looked_at():
    """What the look costs does not grow with the batch."""
    from demi.server.scheduling.inspection import _first

    assert (1, LOOK_AT * 2) == _first(np.zeros((4, LOOK_AT * 2), np.int8)).shape
    assert (256, 1024) == _first(np.zeros((1000, 1024), np.int8)).shape
    assert (3, 2) == _first(np.zeros((3, 2))).shape
