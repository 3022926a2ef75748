"""Questions to all replicas: joined answers, replicas that do not answer, and changes that fail."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from demi.errors import DemiError
from demi.server.errors import NotFoundError, UnavailableError
from demi.server.ray.fleet import Fleet, Peers, Reply


class FakePeers(Peers):
    """Replicas whose replies are given; they are pickled, as between processes."""

    replica = "me"

    def __init__(self, *replies: Reply | BaseException) -> None:
        self.replies = replies
        self.asked: list[tuple[Any, ...]] = []

    async def ask(self, question: str, *arguments: Any, timeout_s: float) -> list[Reply | BaseException]:
        self.asked.append((question, *arguments))
        return [pickle.loads(pickle.dumps(reply)) for reply in self.replies]


class Unreachable(FakePeers):
    """Ray before it knows any replica."""

    async def ask(self, question: str, *arguments: Any, timeout_s: float) -> list[Reply | BaseException]:
        raise TimeoutError("no replicas")


async def mine(question: str, *arguments: Any) -> str:
    """Answer for this replica."""
    return f"my {question}"


async def fail(question: str, *arguments: Any) -> str:
    """Answer with an error."""
    raise NotFoundError("unknown model `m`")


def read(peers: Peers, answer: Any = mine) -> dict[str, Any]:
    """Ask all replicas."""
    return asyncio.run(Fleet(peers, answer).read("index"))


def test_the_answers_of_all_are_returned_by_replica():
    """This one's comes first, as it was sent."""
    found = read(FakePeers(Reply("other", "theirs"), Reply("me", "mine")))

    assert [("me", "mine"), ("other", "theirs")] == list(found.items())


@pytest.mark.parametrize("peers", [FakePeers(), FakePeers(Reply("other", 1)), Unreachable()])
def test_a_replica_that_ray_does_not_list_yet_answers_itself(peers):
    """Its own answer is never missing."""
    assert "my index" == read(peers)["me"]


def test_replicas_without_an_answer_are_left_out():
    """A dead replica does not make the others' answer fail."""
    assert ["me"] == list(read(FakePeers(Reply("me", 1), ConnectionError("died"))))


def test_an_error_of_another_replica_is_left_out():
    """While a model is being loaded everywhere, some do not know it yet."""
    assert ["me"] == list(read(FakePeers(Reply("me", 1), Reply("other", error=NotFoundError("unknown")))))


def test_the_own_error_is_raised():
    """As the ordinary server raises it, with its hint."""
    with pytest.raises(NotFoundError, match="unknown model"):
        read(FakePeers(), fail)


def test_a_change_that_fails_here_is_not_asked_elsewhere():
    """A bundle that cannot be loaded stays out of the other replicas."""
    peers = FakePeers(Reply("other"))

    with pytest.raises(NotFoundError):
        asyncio.run(Fleet(peers, fail).change("load", "m"))

    assert [] == peers.asked


def test_a_change_that_fails_elsewhere_is_an_error():
    """The client learns that not all replicas followed."""
    failed = UnavailableError("no memory", retry_after_s=1)

    with pytest.raises(DemiError, match="no memory"):
        asyncio.run(Fleet(FakePeers(Reply("me"), Reply("other", error=failed)), mine).change("load", "m"))


def test_a_replica_that_dies_during_a_change_is_no_error():
    """Its successor loads the folder, and learns what else was chosen."""
    asyncio.run(Fleet(FakePeers(Reply("me"), ConnectionError("died")), mine).change("load", "m"))
