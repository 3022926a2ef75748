"""Calls side by side: results in order, few of them waiting, errors in their place."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from demi.calibration.emulation.side_by_side import in_order


@pytest.fixture
def threads():
    """Two threads."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_results_come_in_order(threads):
    """Each item's result is yielded in the order of the items."""
    assert [0, 1, 4, 9, 16, 25] == list(in_order(threads, 2, lambda item: item * item, range(6)))


def test_calls_run_together(threads):
    """Two calls that wait for each other both end."""
    both = Barrier(2, timeout=30)

    assert 2 == len(list(in_order(threads, 2, lambda _: both.wait(), range(2))))


def test_few_results_wait(threads):
    """While the caller uses a result, no more calls than `at_once` have been started beyond it."""
    started = []
    results = in_order(threads, 2, started.append, range(100))

    next(results)

    assert len(started) <= 3


def test_an_error_is_raised_in_its_place(threads):
    """Earlier results are yielded before the error of a call."""
    results = in_order(threads, 2, lambda item: 6 // item, [2, 1, 0])

    assert [3, 6] == [next(results), next(results)]
    with pytest.raises(ZeroDivisionError):
        next(results)
