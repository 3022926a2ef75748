"""Summaries of comparisons: exact sums, in any order and grouping."""

from __future__ import annotations

import math
import statistics
from functools import reduce
from operator import add

from hypothesis import given
from hypothesis import strategies as st

from demi.accuracy.compare import TensorDiff
from demi.server.accuracy.summary import Summary, summarize
from tests.server.accuracy.test_window import diff

ERRORS = st.one_of(st.floats(0, 1e100), st.floats(0, 1e-3), st.just(math.inf))
SHARES = st.one_of(st.none(), st.floats(0, 1))


@st.composite
def diffs(draw: st.DrawFn) -> TensorDiff:
    """Draw one comparison of an output."""
    found = draw(st.integers(0, 9))
    return diff(
        draw(ERRORS),
        max_abs=draw(st.floats(0)),
        cosine=draw(st.floats(-1, 1)),
        top1=draw(SHARES),
        agree=draw(SHARES),
        steps=draw(SHARES),
        non_finite=draw(st.integers(0, 3)),
        mismatched=draw(st.integers(0, 3)),
        found=found or None,
        changed=draw(st.integers(0, found)),
    )


@given(st.lists(st.lists(diffs(), max_size=5), min_size=1, max_size=4), st.randoms())
def test_summaries_add_up_to_the_summary_of_all(groups, random):
    """However comparisons are grouped and ordered, the sum is the same to the last bit."""
    together = [each for group in groups for each in group]
    parts = [summarize(group) for group in groups]
    random.shuffle(parts)

    assert summarize(together) == reduce(add, parts, Summary())


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=30))
def test_variance_is_correctly_rounded(errors):
    """The variance of the squares is the exact one, where a difference of float sums would cancel."""
    squares = [error * error for error in errors]

    assert statistics.variance(squares) == summarize([diff(error) for error in errors]).variance


def test_nearly_equal_errors_keep_their_variance():
    """A spread of one part in 10**12 survives; as a difference of float sums it would be zero or negative."""
    found = summarize([diff(1.0), diff(1.0 + 1e-12)])

    assert math.isclose(2e-24, found.variance, rel_tol=1e-3)


def test_an_infinite_error_makes_the_mean_infinite():
    """The sums leave it out, so that they stay numbers, and count it."""
    found = summarize([diff(1.0), diff(math.inf)])

    assert math.inf == found.mean_square
    assert (2, 1) == (found.count, found.infinite)
