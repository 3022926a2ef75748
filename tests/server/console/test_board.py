"""The board: cards of all models, and which of them changed since a page last looked."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.accuracy.compare import compare
from demi.bundles.traffic import Canary, Traffic
from demi.server.accuracy.window import MIN_SAMPLES, ShadowSample, assess_output
from demi.server.http.console.board import Board
from demi.server.http.console.cards import Cards
from demi.server.http.console.gauges import gauges, used
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.settings import ServeSettings
from demi.server.telemetry.recorder import Recorder
from tests.server.fakes import loaded, open_fake

X = np.ones((1, 3), np.float32)


def ready(name: str, version: str = "1") -> Model:
    """Return a model that is ready."""
    model = Model(name, version, ServeSettings())
    model.start(loaded(open_fake()))
    return model


def failed(name: str, reason: str) -> Model:
    """Return a model whose bundle could not be loaded."""
    model = Model(name, "1", ServeSettings())
    model.fail(reason)
    return model


def board_of(*models: Model) -> tuple[Board, Repository, Recorder]:
    """Return a board, the repository behind it and the recorder that feeds it."""
    repository = Repository(list(models))
    recorder = Recorder(repository)
    return Board(repository, recorder), repository, recorder


def names(changes) -> list[str]:
    return [card.name for card in changes.cards]


def test_a_new_page_gets_everything_and_then_changes():
    """A page begins with all cards; then it gets those that changed, and the models that are gone."""
    a, b = ready("a"), ready("b")
    board, repository, recorder = board_of(a, b)
    board.update()
    first = board.since(0)
    board.update()
    quiet = board.since(first.revision)
    a.statistics.refuse(0)
    recorder.read("minutes")
    board.update()
    one = board.since(quiet.revision)
    repository.remove(b)
    board.update()
    last = board.since(one.revision)
    a.close()
    b.close()

    assert (["a", "b"], [], ["a"]) == (names(first), names(quiet), names(one))
    assert 1 == one.cards[0].failures
    assert ([], [("b", "1")]) == (names(last), last.gone)
    assert (["a"], []) == (names(board.since(0)), board.since(0).gone)


def test_a_model_that_was_replaced_is_shown_anew():
    """The card of a reloaded version starts from zero, though nothing else about it changed."""
    before, after = ready("a"), ready("a")
    board, repository, _ = board_of(before)
    before.statistics.refuse(0)
    board.update()
    revision = board.since(0).revision
    repository.put(after)
    board.update()
    changes = board.since(revision)
    before.close()
    after.close()

    assert [0] == [card.failures for card in changes.cards]


def test_a_model_that_ends_is_shown_although_idle():
    """An idle model whose state changes gets a new card."""
    model = ready("a")
    board, _, _ = board_of(model)
    board.update()
    revision = board.since(0).revision
    model.retire()
    board.update()

    assert ["unloaded"] == [card.state for card in board.since(revision).cards]


def test_the_traffic_of_a_canary_is_on_both_cards():
    """Idle versions get new cards when the rules among them change."""
    stable, canary = ready("a", "1"), ready("a", "2")
    board, repository, _ = board_of(stable, canary)
    board.update()
    before = [card.traffic.percent for card in board.since(0).cards]
    revision = board.since(0).revision
    repository.set_traffic("a", Traffic(stable=1, canary=Canary(2, 10.0)))
    board.update()
    after = [(card.traffic.percent, card.traffic.names) for card in board.since(revision).cards]
    stable.close()
    canary.close()

    assert [0.0, 100.0] == before
    assert [(90.0, ("stable",)), (10.0, ("canary",))] == after


def test_a_failed_model_says_why():
    """The card has the state and the reason, and no numbers."""
    card = Cards().card(failed("a", "its digest differs"), None)

    assert ("failed", "its digest differs", None, "none") == (card.state, card.reason, card.rate, card.accuracy.state)


def test_a_served_request_is_on_the_card():
    """After a real request the card has its latency, rows per run and precision."""
    model = ready("a")
    board, _, recorder = board_of(model)
    recorder.read("minutes")

    async def ask() -> None:
        await model.infer({"x": X}, ["y"], 5)

    asyncio.run(ask())
    recorder.read("minutes")
    board.update()
    (card,) = board.since(0).cards
    model.close()

    assert (1, 1.0, 0.0, "fp16", "fp16", "cpu") == (
        card.requests,
        card.batch,
        card.failed_share,
        card.precision,
        card.serving,
        card.device,
    )
    assert card.rate is not None
    assert card.rate > 0
    assert card.p50_ms is not None
    assert 0 < card.p50_ms < 5000


@pytest.mark.parametrize(
    ("metric", "value", "limit", "expected"),
    [
        ("relative_l2", 0.005, 0.01, 0.5),
        ("top1", 0.99, 0.98, 0.5),
        ("top1", 1.0, 1.0, 0.0),
        ("top1", 0.9, 1.0, float("inf")),
        ("max_abs", 0.0, 0.0, 0.0),
        ("cosine", 1.0, 0.9, 0.0),
    ],
)
def test_the_use_of_a_limit(metric, value, limit, expected):
    """The share of the allowed error: from zero, or from one for metrics that must be at least their limit."""
    assert expected == pytest.approx(used(metric, value, limit))


def test_gauges_show_the_most_used_limit_first():
    """Each limit of the budget is a gauge with its interval; an extreme has none."""
    limits = Limits(relative_l2=0.1, max_abs=0.2)
    diffs = [compare([{"y": X}], [{"y": X * 1.05}], Budget()).outputs[0]] * MIN_SAMPLES
    first, second = gauges(assess_output("y", diffs, limits))

    assert ("relative_l2", "max_abs") == (first.metric, second.metric)
    assert (0.5, 0.25) == (pytest.approx(first.use), pytest.approx(second.use))
    assert first.low is not None
    assert first.low <= first.value <= first.high
    assert (None, None) == (second.low, second.high)
    assert (0.1, False, "within", MIN_SAMPLES) == (first.limit, first.at_least, first.state, first.samples)


def test_the_window_is_not_assessed_for_every_page():
    """The walk over the window is repeated only after a fiftieth of new samples."""
    model = ready("a")
    cards = Cards()
    sample = ShadowSample("", "", 0, compare([{"y": X}], [{"y": X}], Budget()).outputs)
    for _ in range(100):
        model.monitor.window.add(sample)
    found = [cards.assess(model, samples) for samples in (100, 101, 102, 103, 104)]
    model.close()

    assert [True, True, False, True] == [a is b for a, b in itertools.pairwise(found)]
