"""The paired bootstrap: small intervals for consistent differences, and wide ones for chance."""

import numpy as np
import pytest

from demi.calibration.gate.bootstrap import paired_interval

RNG = np.random.default_rng(7)
HITS = np.stack([RNG.random(400) < 0.8, np.ones(400)], axis=1).astype(float)


def test_nothing_changed():
    """Without a difference the interval is the point zero."""
    interval = paired_interval(HITS, HITS, "ratio")

    assert (0, 0) == (interval.low, interval.high)


def test_pairs_are_kept():
    """A small difference on every sample is significant, even if samples differ much more from each other."""
    was = np.stack([RNG.random(50) * 100, np.ones(50)], axis=1)
    now = was + np.array([1.0, 0.0])
    interval = paired_interval(now, was, "ratio")

    assert 1.0 == pytest.approx(interval.low) == pytest.approx(interval.high)
    shuffled = paired_interval(RNG.permutation(now), was, "ratio")
    assert shuffled.low < 0 < shuffled.high


def test_one_sample_may_be_chance():
    """One additional hit in 400 may be chance: the interval reaches zero."""
    better = HITS.copy()
    better[np.flatnonzero(better[:, 0] == 0)[0], 0] = 1

    assert 0 == paired_interval(better, HITS, "ratio").low


def test_coverage_of_the_interval():
    """Of 200 draws of a known difference, about 95% of the intervals hold it."""
    held = 0
    for _ in range(200):
        was = RNG.standard_normal(60)
        rows = [np.stack([values, np.ones(60)], axis=1) for values in (was + 0.5 + RNG.standard_normal(60), was)]
        interval = paired_interval(*rows, "ratio")
        held += interval.low <= 0.5 <= interval.high

    assert 0.88 < held / 200 < 0.99


def test_the_seed_decides():
    """The same seed gives the same interval, and the seed is part of the text."""
    noisy = np.stack([RNG.random(40), np.ones(40)], axis=1)
    first, again, other = (paired_interval(noisy, noisy[::-1].copy(), "ratio", seed) for seed in (1, 1, 2))

    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert "2,000 resamples of 40 samples, seed 2" in other.method


@pytest.mark.parametrize("rows", [HITS[:1], np.array([[np.inf, 1.0], [1.0, 1.0]])])
def test_nothing_to_resample(rows):
    """One sample, or an infinity, has no interval."""
    assert paired_interval(rows, rows, "ratio") is None
