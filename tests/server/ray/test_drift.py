"""Drift of a fleet: one verdict from the samples of all, which everybody follows little by little."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from demi.accuracy.budget import Budget, Limits
from demi.server.accuracy.monitor import AccuracyMonitor
from demi.server.accuracy.verdict import FIRST_SHARE, RAMP_S, Verdict, moved_share
from demi.server.accuracy.window import MIN_SAMPLES, ShadowSample
from demi.server.clock import now_ms
from demi.server.models.loading import Loaded
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.ray.args import Args
from demi.server.ray.choices import LEAD_S, Choices, Keeper, drift
from demi.server.ray.drift import Drift
from demi.server.ray.everywhere import answer_alone
from demi.server.ray.fleet import Fleet, Peers, Reply, reply_to
from demi.server.telemetry.overview import OwnOverview
from tests.server.accuracy.test_shadow import SIGNATURE
from tests.server.accuracy.test_window import diff
from tests.server.fakes import open_fake
from tests.server.ray.test_choices import LocalBoard

FEW = MIN_SAMPLES // 2
"""Samples of one replica: too few for a verdict, and enough with those of another one."""


class Replica:
    """A replica without Ray: one model, and what it decides and follows."""

    def __init__(self, name: str, fleet: LocalFleet) -> None:
        self.name = name
        self.model = Model("m", "1", Args(models="models", on_drift="fp32").settings)
        self.load()
        self.repository = Repository([self.model])
        self.overview = OwnOverview(self.repository)
        self.choices = Choices(fleet.board, self._ignore, name)
        self.drift = Drift(self.repository, Fleet(PeersOf(fleet, name), self.answer), self.choices)
        fleet.replicas.append(self)

    def load(self) -> None:
        """Load the model, again if it was loaded."""
        budget = Budget(Limits(relative_l2=1e-2))
        self.model.start(Loaded((open_fake(),), SIGNATURE, "fp16", open_fake, budget))

    @property
    def monitor(self) -> AccuracyMonitor:
        return self.model.monitor

    def sample(self, error: float, count: int = FEW) -> None:
        """Compare requests, all with the same error."""
        for number in range(count):
            self.monitor.add_sample(ShadowSample(f"{self.name}{number}", "", now_ms(), (diff(error),)))

    async def answer(self, question: str, *arguments: Any) -> Any:
        return await answer_alone(self.overview, None, question, *arguments)  # type: ignore[arg-type]  # no control

    async def _ignore(self, key: Any, value: Any) -> None:
        """As a replica does with verdicts."""

    async def turn(self) -> None:
        """Exchange choices and decide, as a replica does from time to time."""
        await self.choices.exchange()
        await self.drift.decide()


class LocalFleet:
    """Replicas that reach each other without Ray."""

    def __init__(self) -> None:
        self.board = LocalBoard()
        self.replicas: list[Replica] = []

    def turn(self) -> None:
        """Let every replica exchange and decide."""
        for replica in self.replicas:
            asyncio.run(replica.turn())

    def close(self) -> None:
        for replica in self.replicas:
            replica.model.close()


class PeersOf(Peers):
    """The replicas of a fleet, as one of them asks them; replies are pickled, as between processes."""

    def __init__(self, fleet: LocalFleet, replica: str) -> None:
        self.replica = replica
        self._fleet = fleet

    async def ask(self, question: str, *arguments: Any, timeout_s: float) -> list[Reply | BaseException]:
        found = [await reply_to(each.name, each.answer, question, *arguments) for each in self._fleet.replicas]
        return [pickle.loads(pickle.dumps(reply)) for reply in found]


@pytest.fixture
def fleet():
    """Return two replicas."""
    made = LocalFleet()
    Replica("a", made)
    Replica("b", made)
    yield made
    made.close()


def states(fleet: LocalFleet) -> list[bool]:
    """Return which replicas take the model for over its budget."""
    return [replica.monitor.over for replica in fleet.replicas]


def test_the_samples_of_all_decide(fleet):
    """Each replica alone has too few; both together are enough, and both follow."""
    for replica in fleet.replicas:
        replica.sample(0.5)
    before = states(fleet)
    fleet.turn()
    fleet.turn()

    assert ([False, False], [True, True]) == (before, states(fleet))
    assert ["over", "over"] == [replica.monitor.changes[-1].to for replica in fleet.replicas]
    assert fleet.replicas[0].monitor.changes[-1] == fleet.replicas[1].monitor.changes[-1]


def test_one_replica_does_not_decide_by_itself(fleet):
    """Samples of its own that are over the budget change nothing before the verdict."""
    fleet.replicas[1].sample(0.5, 3 * MIN_SAMPLES)

    assert [False, False] == states(fleet)


def test_all_return_when_new_samples_are_within(fleet):
    """The samples of before the verdict no longer count."""
    for replica in fleet.replicas:
        replica.sample(0.5)
    fleet.turn()
    fleet.turn()
    for replica in fleet.replicas:
        replica.sample(1e-6)
    fleet.turn()
    fleet.turn()

    assert [False, False] == states(fleet)
    assert ["over", "within"] == [change.to for change in fleet.replicas[1].monitor.changes]


def test_samples_of_a_replica_that_has_not_followed_yet_do_not_count(fleet):
    """They are those that the verdict rests on."""
    first, other = fleet.replicas
    other.sample(0.5, 2 * MIN_SAMPLES)
    first.sample(0.5)
    asyncio.run(first.turn())
    first.sample(1e-6, 2 * MIN_SAMPLES)
    asyncio.run(first.turn())

    assert [False, False] == states(fleet)
    assert ["over", "within"] == [change.to for change in first.monitor.changes]


def test_a_replica_that_starts_later_and_a_model_loaded_again_follow(fleet):
    """A verdict holds until it is revoked."""
    for replica in fleet.replicas:
        replica.sample(0.5)
    fleet.turn()
    fleet.replicas[0].model.close()
    fleet.replicas[0].load()
    Replica("c", fleet)
    fleet.turn()

    assert [True, True, True] == states(fleet)


def test_another_replica_decides_when_the_first_has_died(fleet):
    """After a while without a question from it."""
    clock = [0.0]
    fleet.board.keeper = Keeper(lambda: clock[0])
    fleet.turn()
    gone = fleet.replicas.pop(0)
    gone.model.close()
    fleet.replicas[0].sample(0.5, 2 * MIN_SAMPLES)
    fleet.turn()
    early = states(fleet)
    clock[0] += LEAD_S + 1
    fleet.turn()

    assert ([False], [True]) == (early, states(fleet))


def test_without_a_board_nobody_decides(fleet):
    """All serve on as they do."""
    fleet.board.fail = True
    for replica in fleet.replicas:
        replica.sample(0.5)
    fleet.turn()

    assert [False, False] == states(fleet)


def test_traffic_moves_little_by_little(fleet):
    """A tenth at once, half after a while, all within the ramp; back to half at once."""
    monitor = fleet.replicas[0].monitor
    draws = iter([0.05, 0.15, 0.5, 0.6, 0.999, 0.0])
    monitor._draw = lambda: next(draws)

    def moved(seconds_ago: float, count: int) -> list[bool]:
        monitor.over = False
        monitor.follow(Verdict("over", now_ms() - int(1000 * seconds_ago), 20, ("why",)))
        return [monitor.moves_request() for _ in range(count)]

    assert ([True, False], [True, False], [True]) == (moved(0, 2), moved(RAMP_S * 0.5, 2), moved(RAMP_S, 1))
    monitor.follow(Verdict("within", now_ms(), 20))
    assert not monitor.moves_request()


@pytest.mark.parametrize(("seconds", "share"), [(-5, FIRST_SHARE), (0, 0.1), (150, 0.55), (300, 1.0), (9000, 1.0)])
def test_the_ramp(seconds, share):
    """From the first share to all; clocks of machines may differ a little."""
    assert share == pytest.approx(moved_share(seconds))


def test_a_verdict_is_a_choice_that_travels():
    """It is pickled between replicas."""
    verdict = Verdict("over", 5, 20, ("`y`: too much",))

    assert pickle.loads(pickle.dumps(verdict)) == verdict
    assert ("drift", "m", "1") == drift("m", "1")
