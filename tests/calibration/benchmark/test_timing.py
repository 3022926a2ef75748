"""Timing: order and count of the runs; no test depends on how long anything takes."""

import numpy as np
import pytest

from demi.calibration.benchmark.timing import Latency, SideBySide, time_side_by_side
from demi.proofs.turns import with_batch
from demi.tensors import DType, TensorSpec
from tests.fakes import FakeSession

X32, X16 = TensorSpec("x", DType.FP32, ("batch", 2)), TensorSpec("x", DType.FP16, ("batch", 2))


@pytest.fixture
def sessions():
    """Return an FP32 and a half session that append their runs to one list."""
    turns = []

    def session(name, spec):
        return FakeSession([spec], [], lambda feeds: turns.append(name) or {})

    return session("fp32", X32), session("half", X16), turns


def latency(p50, batch=4):
    """Return a latency with this median."""
    return Latency(batch, 5, p50, p50, p50, 1.0)


def test_turn_by_turn(sessions):
    """The two sessions run in turns, so that a noisy machine disturbs both alike; the first turn is a warm-up."""
    fp32, half, turns = sessions
    result = time_side_by_side(fp32, half, {"x": np.ones((4, 2), np.float32)}, 4, seconds=0.0)

    assert ["fp32", "half"] * 6 == turns
    assert (5, 5) == (result.fp32.runs, result.half.runs)


def test_inputs_are_cast_for_each_session(sessions):
    """A session with half inputs receives them in half."""
    fp32, half, _ = sessions
    time_side_by_side(fp32, half, {"x": np.ones((4, 2), np.float32)}, 4, seconds=0.0)

    assert {np.dtype(np.float32)} == {feeds["x"].dtype for feeds in fp32.asked}
    assert {np.dtype(np.float16)} == {feeds["x"].dtype for feeds in half.asked}


def test_percentiles_are_in_order(sessions):
    """Half of all runs are at most as slow as the median, and so on; rows are counted, not runs."""
    fp32, half, _ = sessions
    result = time_side_by_side(fp32, half, {"x": np.ones((4, 2), np.float32)}, 4, seconds=0.0).fp32

    assert 0 < result.p50_ms <= result.p95_ms <= result.p99_ms
    assert result.rows_per_s > 0
    assert 4 == result.batch


def test_speedup_is_the_ratio_of_medians():
    """A speedup is the ratio of medians: half the time is twice the speed."""
    assert 2.0 == SideBySide(latency(10.0), latency(5.0)).speedup


@pytest.mark.parametrize(("rows", "expected"), [(1, [0]), (3, [0, 2, 4]), (5, [0, 2, 4, 0, 2])])
def test_batch_is_cut_or_repeated(rows, expected):
    """Rows are repeated in order until there are enough of them."""
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}

    assert expected == with_batch(feeds, [X32], rows)["x"][:, 0].tolist()
