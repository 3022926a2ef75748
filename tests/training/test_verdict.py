"""Is half as good as FP32? Planted answers, the statistics by hand, and one real run."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from demi.errors import InputError
from demi.training.compare import compare
from demi.training.optimizer import OptimizerSettings
from demi.training.request import TrainRequest
from demi.training.verdict import AS_GOOD, NOT_SHOWN, WORSE, judge
from tests.training.tasks import BackwardOverflow, Task


def planted(seed: int, lost: float) -> tuple[list[float], list[float]]:
    """Eight accuracies around 0.9 with a spread of 0.01, and their pairs with a mean loss and a spread of 0.001."""
    draw = np.random.default_rng(seed)
    fp32 = 0.9 + 0.01 * draw.standard_normal(8)
    return list(fp32), list(fp32 - lost - 0.001 * draw.standard_normal(8))


@pytest.mark.parametrize("seed", range(10))
def test_equal(seed):
    """Ten cases in which half loses nothing."""
    assert AS_GOOD == judge(*planted(seed, 0.0)).outcome


@pytest.mark.parametrize("seed", range(10))
def test_worse(seed):
    """Ten cases in which half loses two standard deviations of the seeds."""
    assert WORSE == judge(*planted(seed, 0.02)).outcome


def test_the_bounds_by_hand():
    """t(0.95, 3) is 2.3534; the differences 1, 2, 3, 4 have mean 2.5 and SD 1.291."""
    found = judge([10.0, 20.0, 30.0, 40.0], [9.0, 18.0, 27.0, 36.0], margin=5.0)

    assert (2.5, 2.5 + 2.3534 * 1.29099 / 2) == pytest.approx((found.mean, found.high), rel=1e-4)
    assert AS_GOOD == found.outcome


def test_not_shown_says_how_many_pairs():
    """That many pairs of the same spread do show it, and one fewer does not."""
    found = judge([0.0, 0.0, 0.0, 0.0], [-0.5, 0.9, -0.7, 0.9], margin=0.4)
    assert NOT_SHOWN == found.outcome
    assert found.needed > 4
    spread = np.std([0.5, -0.9, 0.7, -0.9], ddof=1)

    from scipy.stats import t

    def high(n):
        return found.mean + t.ppf(0.95, n - 1) * spread / math.sqrt(n)

    assert high(found.needed) < 0.4 <= high(found.needed - 1)


def test_no_number_of_pairs():
    """The mean lies on the margin."""
    found = judge([1.0, 1.0], [0.0, 0.1], margin=0.95)
    assert (NOT_SHOWN, None) == (found.outcome, found.needed)


def test_lower_is_better():
    """A loss that rises is a loss."""
    assert WORSE == judge([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], higher_is_better=False).outcome
    assert AS_GOOD == judge([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], higher_is_better=True).outcome


def test_a_run_that_is_not_finite_is_worse():
    """However good the others are."""
    found = judge([0.9, 0.8, 0.7], [0.9, math.nan, 0.7])
    assert (WORSE, "1 of 3 runs in half are not finite") == (found.outcome, found.reason)


@pytest.mark.parametrize(
    ("fp32", "half", "words"),
    [([1.0], [1.0], "1 and 1 runs"), ([1.0, math.inf], [1.0, 1.0], "not finite itself"), ([1, 1], [1, 1], "no margin")],
)
def test_what_cannot_be_judged(fp32, half, words):
    """The reason, and what to give."""
    with pytest.raises(InputError, match=words):
        judge(fp32, half)


def request(folder, task, **options) -> TrainRequest:
    """A short run."""
    return TrainRequest(task, 30, folder, "bf16", OptimizerSettings(lr=1e-2), **options)


def test_real_pairs(tmp_path):
    """Two seeds in two precisions; done once, they are read and not trained again."""
    first = compare(request(tmp_path, Task()), 2, "accuracy", margin=0.1)
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("weights.safetensors"))]
    again = compare(request(tmp_path, Task()), 2, "accuracy", margin=0.1)

    assert (AS_GOOD, True, first.fp32) == (first.verdict.outcome, first.higher_is_better, again.fp32)
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("weights.safetensors"))]
    assert 4 == len(times)
    assert AS_GOOD == json.loads((tmp_path / "verdict-bf16.json").read_text())["verdict"]["outcome"]


def test_another_precision_takes_the_same_fp32_runs(tmp_path):
    """They are not trained again, and each verdict has its file."""
    first = compare(request(tmp_path, Task()), 2, "accuracy", margin=0.1)
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/fp32/checkpoints/*"))]
    second = compare(replace(request(tmp_path, Task()), precision="fp16", rehearse=True), 2, "accuracy", margin=0.1)

    assert first.fp32 == second.fp32
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/fp32/checkpoints/*"))]
    assert {"verdict-bf16.json", "verdict-fp16.json"} == {path.name for path in tmp_path.glob("*.json")}


def test_half_that_diverges_is_worse(tmp_path):
    """Its metric is NaN, and the FP32 runs go on."""
    found = compare(
        TrainRequest(BackwardOverflow(), 4, tmp_path, "fp16", max_skips=2, init_scale=1.0), 2, "accuracy", margin=0.1
    )
    assert WORSE == found.verdict.outcome


def test_an_unknown_metric(tmp_path):
    """Those there are, are listed."""
    with pytest.raises(InputError, match="no metric `f1`") as caught:
        compare(request(tmp_path, Task()), 2, "f1")
    assert "loss, accuracy" in caught.value.hint
