"""Choices: the newest counts everywhere, and replicas that start later follow."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from demi.server.errors import NotFoundError
from demi.server.ray.choices import Board, Choice, Choices, Keeper, Made, newest, served, shadow_share

MADE = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b"])), st.integers(0, 9).map(lambda when: Choice(when, f"at {when}"))
)


class LocalBoard(Board):
    """A board without Ray; `fail` makes it unreachable."""

    def __init__(self) -> None:
        self.keeper = Keeper()
        self.fail = False

    async def exchange(self, made: Made) -> Made:
        if self.fail:
            raise ConnectionError("the actor has ended")
        return self.keeper.exchange(made)

    async def leads(self, replica: str) -> bool:
        if self.fail:
            raise ConnectionError("the actor has ended")
        return self.keeper.leads(replica)


class Follower:
    """Records what a replica follows."""

    def __init__(self, board: Board) -> None:
        self.followed: list[tuple[Any, Any]] = []
        self.choices = Choices(board, self._follow)

    async def _follow(self, key: Any, value: Any) -> None:
        self.followed.append((key, value))
        if value == "wrong":
            raise NotFoundError("no such model")


@given(MADE, MADE, MADE)
def test_order_and_repetition_do_not_matter(a, b, c):
    """Whoever exchanges when, all end with the same choices."""
    assert newest(a, b, c) == newest(newest(c, b), a, b)


def test_a_replica_that_starts_later_follows():
    """It was not there when the client asked for it."""
    board = LocalBoard()
    first, later = Follower(board), Follower(board)

    asyncio.run(first.choices.make(served("m"), False))
    asyncio.run(later.choices.exchange())
    asyncio.run(later.choices.exchange())

    assert [(served("m"), False)] == later.followed
    assert [] == first.followed


def test_the_last_choice_counts():
    """Loaded again after it was unloaded."""
    board = LocalBoard()
    first, other = Follower(board), Follower(board)

    asyncio.run(first.choices.make(served("m"), False))
    asyncio.run(other.choices.make(served("m"), True))
    asyncio.run(first.choices.exchange())

    assert [(served("m"), True)] == first.followed


def test_choices_are_followed_in_the_order_of_time():
    """A model was unloaded, and then one of its versions loaded again."""
    board = LocalBoard()
    board.keeper.exchange({served("m", "2"): Choice(2, True), served("m"): Choice(1, False)})
    follower = Follower(board)

    asyncio.run(follower.choices.exchange())

    assert [served("m"), served("m", "2")] == [key for key, _ in follower.followed]


def test_a_board_that_ended_is_filled_again():
    """Its actor ends with the replica that started it; the others remember."""
    board = LocalBoard()
    first = Follower(board)
    asyncio.run(first.choices.make(shadow_share("m", None), 0.5))

    board.keeper = Keeper()
    asyncio.run(first.choices.exchange())
    later = Follower(board)
    asyncio.run(later.choices.exchange())

    assert [(shadow_share("m", None), 0.5)] == later.followed


def test_an_unreachable_board_is_asked_again():
    """The next exchange brings what this one could not."""
    board = LocalBoard()
    first, other = Follower(board), Follower(board)
    board.fail = True
    asyncio.run(first.choices.make(served("m"), False))
    board.fail = False

    asyncio.run(first.choices.exchange())
    asyncio.run(other.choices.exchange())

    assert [(served("m"), False)] == other.followed


def test_a_choice_that_cannot_be_followed_does_not_stop_the_others():
    """A model that is gone from the folder is only a warning."""
    board = LocalBoard()
    board.keeper.exchange({served("gone"): Choice(1, "wrong"), served("m"): Choice(1, False)})
    follower = Follower(board)

    asyncio.run(follower.choices.exchange())

    assert {served("gone"), served("m")} == {key for key, _ in follower.followed}
