"""The window of shadow samples against the budget: intervals, extremes and states."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.accuracy.budget import Budget, Limits
from demi.accuracy.compare import TensorDiff, compare
from demi.server.accuracy.summary import summarize
from demi.server.accuracy.window import (
    MIN_SAMPLES,
    WINDOW,
    ShadowSample,
    Window,
    assess_output,
    root_mean_square,
    wilson,
)

LIMITS = Limits(relative_l2=1e-2)


def diff(relative_l2: float, limits: Limits = LIMITS, **changes: object) -> TensorDiff:
    """Return the diff of one output."""
    values = {"max_abs": 0.1, "cosine": 0.9999, "top1": None, "sqnr_db": 40.0, "non_finite": 0, "mismatched": 0}
    return TensorDiff(output="y", relative_l2=relative_l2, elements=10, limits=limits, **(values | changes))


def window(*errors: float, budget: Budget | None = None) -> Window:
    """Return a window with one output's errors."""
    made = Window(budget or Budget(LIMITS))
    for index, error in enumerate(errors):
        made.add(ShadowSample(f"r{index}", "0" * 16, index, (diff(error),)))
    return made


def test_an_empty_window_is_unknown():
    """An empty window is unknown, with its number of samples."""
    assert "unknown (0 samples)" == window().assess().text


def test_too_few_samples_are_unknown():
    """One sample too few leaves the state unknown, however small the errors."""
    assert f"unknown ({MIN_SAMPLES - 1} samples)" == window(*[1e-4] * (MIN_SAMPLES - 1)).assess().text


def test_within():
    """Enough small errors are within the budget."""
    assert "within" == window(*[1e-3] * MIN_SAMPLES).assess().text


def test_over_names_the_output_the_numbers_and_the_budget():
    """Errors whose interval lies above the limit are over the budget."""
    verdict = window(*[2e-2, 2.2e-2] * 15).assess()

    assert "over" == verdict.state
    assert ["`y`: relative_l2 is 0.021 (0.0207 to 0.0214), the budget is at most 0.01"] == verdict.reasons


def test_an_interval_around_the_limit_is_unknown():
    """An interval that contains the limit is neither within nor over."""
    assert "unknown" == window(*[5e-3, 1.3e-2] * 20).assess().state


def test_one_non_finite_value_is_over():
    """A single answer that half precision alone made infinite is over any budget."""
    made = window(1e-4)
    made.add(ShadowSample("bad", "f" * 16, 1, (diff(math.inf, non_finite=3),)))

    assert "over" == made.assess().state
    assert "bad" == made.worst()[0].request_id


@pytest.mark.parametrize(
    ("limits", "change", "reason"),
    [
        (Limits(max_abs=0.05), {}, "max_abs reached 0.1, the budget is at most 0.05"),
        (Limits(cosine=0.99999), {}, "cosine fell to 0.9999, the budget is at least 0.99999"),
        (Limits(top1=0.9), {"top1": 0.0}, "top1 is 0 (0 to 0.114), the budget is at least 0.9"),
    ],
)
def test_every_limit_can_be_exceeded(limits, change, reason):
    """Each kind of limit gives its own reason."""
    verdict = assess_output("y", [diff(1e-4, **change)] * 30, limits)

    assert ("over", (reason,)) == (verdict.state, verdict.reasons)


def test_top1_above_its_limit_is_within():
    """Top-1 agreement above its limit is within, without needing hundreds of samples."""
    assert "within" == assess_output("y", [diff(1e-4, top1=1.0)] * 30, Limits(top1=0.99)).state


def test_old_samples_are_dropped():
    """A full window drops its oldest samples, so that a model can recover."""
    made = window(*[1.0] * 10, *[1e-3] * WINDOW)

    assert ("within", WINDOW) == (made.assess().state, made.assess().samples)


@given(st.integers(1, 400), st.data())
def test_wilsons_interval_contains_the_share(count, data):
    """The interval lies within [0, 1] and contains the share."""
    found = wilson(data.draw(st.integers(0, count)), count)

    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


def test_wilsons_interval_as_published():
    """81 of 263 at 95% gives 0.2553 to 0.3662, as in Brown, Cai and DasGupta (2001)."""
    found = wilson(81, 263)

    assert (0.2553, 0.3662) == (round(found.low, 4), round(found.high, 4))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=50))
def test_the_mean_lies_in_its_interval(values):
    """The root mean square equals NumPy's and lies in its interval."""
    found = root_mean_square(summarize([diff(value) for value in values]))

    assert math.isclose(found.value, float(np.sqrt(np.mean(np.square(values)))), rel_tol=1e-9, abs_tol=1e-150)
    assert found.low <= found.value <= found.high


def test_diffs_of_compare_are_assessed():
    """The window assesses the diffs of `demi.accuracy.compare`, which `demi check` uses as well."""
    rng = np.random.default_rng(0)
    made = Window(Budget(LIMITS))
    for index in range(MIN_SAMPLES):
        want = rng.standard_normal((1, 50)).astype(np.float32)
        outputs = compare([{"y": want}], [{"y": want.astype(np.float16).astype(np.float32)}], Budget(LIMITS)).outputs
        made.add(ShadowSample(str(index), "", 0, outputs))

    assert "within" == made.assess().text
    assert 1e-5 < made.assess().outputs[0].relative_l2.value < 1e-3
