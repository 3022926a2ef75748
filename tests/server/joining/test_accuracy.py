"""The accuracy of several servers equals that of one server that saw everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.accuracy.budget import Budget, Limits
from demi.server.accuracy.window import ShadowSample, Window
from demi.server.joining.accuracy import join_accuracy
from demi.server.models.describe import AccuracyReport, report_accuracy
from demi.server.models.model import Model
from demi.server.protocol.schemas import AccuracyAnswer
from tests.server.accuracy.test_summary import diffs
from tests.server.accuracy.test_window import diff
from tests.server.fakes import loaded, open_fake

BUDGET = Budget(Limits(relative_l2=1e-2, top1=0.9, agree=0.9, boxes=0.5, max_abs=1.0))


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """Start a model whose window each test fills as it likes."""
    made = Model("m", "1")
    made.start(loaded(open_fake()))
    yield made
    made.close()


@st.composite
def samples(draw: st.DrawFn) -> list[list[ShadowSample]]:
    """Draw the samples of several servers; the request ids are those of all, in the order of their times."""
    sizes = draw(st.lists(st.integers(0, 25), min_size=1, max_size=4))
    numbers = iter(draw(st.permutations(range(sum(sizes)))))
    drawn = draw(st.lists(diffs(), min_size=1, max_size=4))
    return [[_sample(number, drawn[number % len(drawn)]) for number in islice(numbers, size)] for size in sizes]


def _sample(number: int, found: object) -> ShadowSample:
    return ShadowSample(f"r{number}", "0" * 16, number, (found,))


def report(model: Model, seen: Sequence[ShadowSample]) -> AccuracyReport:
    """Return the report of a server that has seen these samples."""
    model.monitor.window = Window(BUDGET)
    for sample in seen:
        model.monitor.window.add(sample)
    return report_accuracy(model)


def without_order(answer: AccuracyAnswer) -> AccuracyAnswer:
    """Sort what has equal errors: one server lists those in the order of arrival."""
    return dataclasses.replace(answer, worst=sorted(str(each.relative_l2) for each in answer.worst))


@given(seen=samples())
def test_joined_accuracy_is_that_of_one_server(model, seen):
    """Every number of the answer is equal to the last bit: intervals, extremes, counts, verdict and reasons."""
    together = [sample for server in seen for sample in server]

    joined = join_accuracy([report(model, server) for server in seen])

    assert without_order(report(model, together).answer) == without_order(joined)


def test_servers_that_are_within_can_be_over_together(model):
    """Ten samples are too few for a verdict; those of three servers are enough."""
    few = [_sample(number, diff(0.05)) for number in range(10)]

    assert "unknown (10 samples)" == report(model, few).answer.state
    assert "over" == join_accuracy([report(model, few)] * 3).state


def test_drift_on_one_server_is_reported(model):
    """While one server serves FP32, the answer says so."""
    one = report(model, [])
    other = dataclasses.replace(one, over=True, answer=dataclasses.replace(one.answer, serving="fp32", degraded=True))

    joined = join_accuracy([one, other])

    assert ("over", "fp16,fp32", True) == (joined.state, joined.serving, joined.degraded)


def test_guarded_requests_and_ranges_add_up(model):
    """Counts are sums; the newest records come last."""
    one = report(model, [])
    first, second = (
        dataclasses.replace(
            one,
            answer=dataclasses.replace(
                one.answer,
                guard=dataclasses.replace(one.answer.guard, reruns=2, requests=[{"when_ms": when}]),
                changes=[{"when_ms": when}],
            ),
        )
        for when in (7, 5)
    )

    joined = join_accuracy([first, second])

    assert 4 == joined.guard.reruns
    assert [{"when_ms": 5}, {"when_ms": 7}] == joined.guard.requests == joined.changes
