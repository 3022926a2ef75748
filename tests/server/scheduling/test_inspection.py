"""Inspection of batches: finite values and bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from demi.server.scheduling.inspection import MAX_ELEMENTS, Bounds, is_finite

FLOATS = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]), hnp.array_shapes(max_dims=3, min_side=0, max_side=8)
)


@given(FLOATS)
def test_is_finite_agrees_with_numpy(values):
    """The quick check agrees with NumPy for every float dtype and all values."""
    assert bool(np.isfinite(values).all()) == is_finite(values)


def test_values_whose_sum_overflows_are_finite():
    """Large finite values are finite although their sum is infinite."""
    assert is_finite(np.full(100, 3e38, np.float32))
    assert is_finite(np.array([3e38, 3e38, -3e38, -3e38], np.float32))


def test_opposite_infinities_do_not_cancel():
    """Plus and minus infinity in one array are not finite."""
    assert not is_finite(np.array([np.inf, -np.inf], np.float32))


@pytest.mark.parametrize("values", [np.array([1, 2]), np.array([True]), np.array(["a"], object)])
def test_other_dtypes_are_finite(values):
    """Integers, booleans and strings are always finite."""
    assert is_finite(values)


def test_bounds_have_the_margin_of_the_plan():
    """Values up to 1.5 times the largest magnitude are within; values beyond on either side, and NaN, are not."""
    bounds = Bounds.around(-1.0, 2.0)

    assert bounds.contain(np.array([-2.0, 3.0]))
    assert not bounds.contain(np.array([3.01]))
    assert not bounds.contain(np.array([-2.01]))
    assert not bounds.contain(np.array([0.0, np.nan]))
    assert bounds.contain(np.zeros((0, 3)))


def test_only_the_first_rows_of_a_large_batch_are_inspected():
    """The cost of the inspection does not grow with the batch."""
    from demi.server.scheduling.inspection import _first

    assert (1, MAX_ELEMENTS * 2) == _first(np.zeros((4, MAX_ELEMENTS * 2), np.int8)).shape
    assert (256, 1024) == _first(np.zeros((1000, 1024), np.int8)).shape
    assert (3, 2) == _first(np.zeros((3, 2))).shape
