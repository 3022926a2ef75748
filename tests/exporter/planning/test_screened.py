"""Verification with early rejection on the worst samples."""

from demi.exporter.planning.screened import Screened
from tests.exporter.planning.helpers import FakeSearch


def runners(load, factor):
    """Return a runner on all samples, and a quick one with `factor` times the load."""
    return FakeSearch(load), FakeSearch(lambda half: factor * load(half))


def size(half):
    """Return a load that grows with the number of half nodes."""
    return len(half) / 10


NODES = [f"n{i}" for i in range(40)]


def test_a_plan_that_fails_by_far_is_not_run_on_all_samples():
    """The first plan gives the ratio of the two loads; the next plan is rejected by it."""
    runner, quick = runners(size, 2.0)
    screened = Screened(runner, quick)

    assert 0.5 == screened.verify(NODES[:5])[1]
    assert 4.0 == screened.verify(NODES)[1]
    assert [frozenset(NODES[:5])] == runner.asked


def test_nothing_is_accepted_at_a_first_look():
    """A plan within the budget on the worst samples, or slightly beyond it, is run on all samples."""
    runner, quick = runners(size, 0.1)
    screened = Screened(runner, quick)

    for count in (5, 4, 9):
        assert count / 10 == screened.verify(NODES[:count])[1]
    assert 3 == len(runner.asked)


def test_where_the_first_plan_breaks_the_model():
    """Until the ratio of the two loads is known, all plans are run on all samples."""
    runner, quick = runners(lambda half: float("inf"), 1.0)
    screened = Screened(runner, quick)

    assert [float("inf")] * 2 == [screened.verify(NODES[:count])[1] for count in (5, 4)]
    assert 2 == len(runner.asked)


def test_one_runner_for_both():
    """If both runners are the same, there is no early rejection."""
    runner, _ = runners(size, 1.0)

    assert 0.5 == Screened(runner, runner).verify(NODES[:5])[1]
    assert 1 == len(runner.asked)
