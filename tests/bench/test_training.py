"""The benchmark of training: its goals by hand, and planted runs whose answer is known."""

from __future__ import annotations

import pytest

from bench.planted_runs import FAULTS, NONE, SEEDS, causes_of, is_named, verdicts
from bench.training import goals

RATIOS = {
    "bare fp32": [1.0, 1.0],
    "demi fp32": [1.02, 1.02],
    "bare fp32, demi.watch": [1.04, 1.04],
    "bare fp32, demi.watch closed": [1.0, 1.0],
    "bare bf16": [0.5, 0.5],
    "demi bf16": [0.51, 0.51],
    "demi bf16, every step inspected": [2.04, 2.04],
}


def test_goals_that_are_met():
    """1 / 0.51, 2% more in either precision, three steps more every hundred steps, 4% and nothing."""
    found = list(goals(RATIOS))

    assert ["1.96x", "+2.0%", "+2.0%", "+3.0%", "+4.0%", "+0.0%"] == [measured for _, _, measured, _ in found]
    assert all(met for _, _, _, met in found)


@pytest.mark.parametrize(
    ("variant", "ratio", "missed"),
    [
        ("demi bf16", 0.6, {"bf16 autocast, speed beside fp32", "the loop in bf16, beside a bare one"}),
        ("demi bf16, every step inspected", 4.0, {"default instruments of the loop in bf16"}),
        ("bare fp32, demi.watch closed", 1.02, {"instruments switched off"}),
    ],
    ids=["slow-half", "slow-inspection", "traces-left"],
)
def test_goals_that_are_missed(variant, ratio, missed):
    """A variant that is too slow misses its own goals and no others."""
    assert missed == {goal for goal, _, _, met in goals(RATIOS | {variant: [ratio, ratio]}) if not met}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{type(fault.task).__name__}-{fault.precision}")
def test_every_planted_fault_is_named(fault):
    """Every skip has the cause that was planted, and no other fault's."""
    causes = causes_of(fault, 5)

    assert {fault.cause} == {each.cause for each in FAULTS if is_named(each, causes)}


def test_a_wrong_name_is_not_right():
    """A skip with another cause, one among several too, a skip that is not planted, and a fault without a skip."""
    fault, healthy = FAULTS[0], FAULTS[-1]

    assert not is_named(fault, [f"{fault.cause}: so", "loss: so"])
    assert not is_named(fault, [])
    assert NONE == healthy.cause
    assert not is_named(healthy, ["scale search: so"])


def test_every_planted_verdict_is_right():
    """Ten pairs of runs that are equal, ten that are worse."""
    found = list(verdicts())

    assert 2 * SEEDS == len(found)
    assert all(wanted == given for _, wanted, given in found)
