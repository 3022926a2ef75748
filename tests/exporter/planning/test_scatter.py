"""Plans are repeated with other roundings: one that verified by luck is rejected, and a steady one is repeated little."""

import math
from dataclasses import dataclass, field

import pytest

from demi.exporter.planning.scatter import CLEAR, FEWEST, REPETITIONS, Repeated, repetitions
from demi.exporter.planning.verified_plan import VERIFIED

PLAN = frozenset(f"node{index}" for index in range(16))


@dataclass
class Runner:
    """Loads of the plan, then of its repetitions in turn: two sets of samples contribute equally to one output."""

    loads: list[float]
    ran: list[frozenset[str]] = field(default_factory=list)

    def contributions_by_output(self, half):
        """Return the contributions of this run, of which the load follows."""
        half = frozenset(half)
        if half not in self.ran:
            self.ran.append(half)
        square = self.loads[self.ran.index(half)] ** 2
        return [{"y": square / 2}, {"y": square / 2}]

    def verify(self, half):
        """Verify a plan with the first load."""
        return True, self.loads[0]


def verified(*loads):
    """The load of the plan with these loads, and its runner."""
    runner = Runner(list(loads))
    _, load = Repeated(runner, runner, runner).verify(PLAN)
    return load, runner


def test_a_lucky_plan_is_rejected():
    load, _ = verified(0.5, 0.4, 1.2, 0.6, 2.0)
    assert 1.2 == pytest.approx(load)


def test_it_is_rejected_as_soon_as_two_repetitions_fail():
    _, runner = verified(0.5, 1.2, 2.0, 0.5, 0.5)
    assert 3 == len(runner.ran)


def test_one_repetition_may_fail():
    load, runner = verified(0.5, 0.4, 1.2, 0.6, 0.7)
    assert 0.7 == pytest.approx(load)
    assert 1 + REPETITIONS == len(runner.ran)


def test_one_repetition_that_is_wrong_altogether_rejects():
    """A router's other choice in one of five roundings stands for one input in five; the others are not run any more."""
    load, runner = verified(0.5, 0.4, 4.0, 0.6, 0.7)

    assert load > VERIFIED
    assert 3 == len(runner.ran)


@pytest.mark.parametrize("loads", [(0.88, 0.85, 0.8), (0.4, 0.32, 0.44)], ids=["steady", "far from the budget"])
def test_few_repetitions_decide(loads):
    load, runner = verified(*loads)
    assert 1 + FEWEST == len(runner.ran)
    assert max(loads[0], sorted(loads)[-2]) == pytest.approx(load)


def test_overflow_in_the_repetitions_rejects():
    load, _ = verified(0.5, math.inf, math.inf)
    assert math.inf == load


@pytest.mark.parametrize("load", [CLEAR, 0.95])
def test_a_clear_or_failed_plan_is_not_repeated(load):
    found, runner = verified(load)
    assert load == found
    assert not runner.ran


def test_the_expected_error_is_the_mean_over_the_repetitions():
    runner = Runner([0.4, 0.32, 0.44])
    sets = Repeated(runner, runner, runner).repeat(PLAN).contributions
    assert (0.4**2 + 0.32**2 + 0.44**2) / 3 == pytest.approx(sum(each["y"] for each in sets))


def test_each_repetition_leaves_another_eighth_in_single():
    first, again = list(repetitions(PLAN)), list(repetitions(PLAN))
    assert first == again
    assert {14} == {len(each) for each in first}
    assert REPETITIONS == len(set(first))


def test_a_single_node_has_no_repetitions():
    assert not list(repetitions(frozenset({"node"})))


def test_some_of_the_samples_may_repeat():
    """Their loads count in proportion to the load of the plan itself on them."""
    quick = Runner([0.8, 0.4, 1.6, 2.4])
    runner = Runner([0.5])
    repeated = Repeated(runner, runner, quick)

    assert 1.0 == pytest.approx(repeated.verify(PLAN)[1])
    assert (0.25 + 0.0625 + 1.0 + 2.25) / 4 == pytest.approx(
        sum(each["y"] for each in repeated.repeat(PLAN).contributions)
    )


def test_samples_that_break_the_plan_itself_say_nothing_of_repetitions():
    runner = Runner([0.5])
    repeated = Repeated(runner, runner, Runner([math.inf] * 5))

    assert 0.5 == pytest.approx(repeated.verify(PLAN)[1])
