"""Choices made while the replicas run, for replicas that start later: models unloaded, shares of samples, drift.

A replica that starts loads the whole folder and knows no request that came before it. So every choice is kept by all replicas,
the newest for each key, and exchanged through a small actor. The actor belongs to the replica that started it and ends
with it; the next exchange starts another one, with all that a replica remembers. Choices are forgotten when all replicas end
at once, as those of `demi serve` are when it ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from demi.errors import DemiError
from demi.server.errors import full_text

log = logging.getLogger("demi.server")

LEAD_S = 30.0
"""Seconds without a question after which another replica decides for all."""

EXCHANGE_S = 5.0
"""Seconds between exchanges: a replica that was starting during a change follows within this time."""

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """A choice and when it was made, in nanoseconds since 1970; of two, the later one counts."""

    when_ns: int
    value: Any


Made = Mapping[Key, Choice]


def served(name: str, version: str | None = None) -> Key:
    """Return the key of the choice whether a model, or one version of it, is served: True or False."""
    return ("served", name, version or "")


def shadow_share(name: str, version: str | None) -> Key:
    """Return the key of the share of a model's requests that are sampled; of the version without a number, if None."""
    return ("shadow", name, version or "")


def drift(name: str, version: str) -> Key:
    """Return the key of the verdict on a model version's drift, a `Verdict`."""
    return ("drift", name, version)


def newest(*made: Made) -> dict[Key, Choice]:
    """Return the latest choice of each key. Order and repetition do not matter."""
    found: dict[Key, Choice] = {}
    for choices in made:
        for key, choice in choices.items():
            if key not in found or found[key].when_ns < choice.when_ns:
                found[key] = choice
    return found


class Board(Protocol):
    """A place where replicas leave their choices and find those of others."""

    async def exchange(self, made: Made) -> Made:
        """Add choices, and return the latest of all."""

    async def leads(self, replica: str) -> bool:
        """Return whether this replica is the one that decides for all: the first that asked, as long as it goes on asking."""


class ActorBoard(Board):
    """The board of one deployment, in an actor that any replica starts."""

    def __init__(self, app: str, deployment: str) -> None:
        self._name = f"demi-choices:{app}:{deployment}"
        self._actor: Any = None

    async def exchange(self, made: Made) -> Made:
        """Add choices, and return the latest of all. An actor that has ended is started again."""
        found: Made = await self._call("exchange", dict(made))
        return found

    async def leads(self, replica: str) -> bool:
        """Return whether this replica is the one that decides for all."""
        return bool(await self._call("leads", replica))

    async def _call(self, method: str, argument: Any) -> Any:
        import ray

        try:
            return await getattr(self._find(), method).remote(argument)
        except ray.exceptions.RayActorError:
            self._actor = None
            return await getattr(self._find(), method).remote(argument)

    def _find(self) -> Any:
        import ray

        if self._actor is None:
            options = {"name": self._name, "get_if_exists": True, "num_cpus": 0}
            self._actor = ray.remote(Keeper).options(**options).remote()
        return self._actor


class Keeper:
    """The content of the board's actor."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made: dict[Key, Choice] = {}
        self._leader = ""
        self._led_at = -math.inf

    def leads(self, replica: str) -> bool:
        """Return whether this replica is the one that decides for all; another one, once it has not asked for long."""
        if replica != self._leader and self._clock() - self._led_at <= LEAD_S:
            return False
        self._leader, self._led_at = replica, self._clock()
        return True

    def exchange(self, made: Made) -> Made:
        """Add choices, and return the latest of all."""
        self._made = newest(self._made, made)
        return self._made


class Choices:
    """The choices that this replica knows. Used on the event loop's thread only.

    `follow` is called with each choice that another replica made, and does what it says.
    """

    def __init__(self, board: Board, follow: Callable[[Key, Any], Awaitable[None]], replica: str = "") -> None:
        self._board = board
        self._replica = replica
        self._follow = follow
        self._made: dict[Key, Choice] = {}

    def get(self, key: Key) -> Any:
        """Return the value of a choice that this replica knows; None if there is none."""
        choice = self._made.get(key)
        return choice.value if choice else None

    async def leads(self) -> bool:
        """Return whether this replica decides for all; False while the board cannot be reached."""
        try:
            return await self._board.leads(self._replica)
        except Exception as error:
            log.warning("no replica decides for all now: %s", error)
            return False

    async def make(self, key: Key, value: Any) -> None:
        """Record a choice that all running replicas already follow."""
        self._made[key] = Choice(time.time_ns(), value)
        await self.exchange()

    async def exchange(self) -> None:
        """Exchange choices with the other replicas, and follow theirs. Failures are logged: the next exchange tries again."""
        try:
            found = await self._board.exchange(self._made)
        except Exception as error:
            log.warning("choices cannot be exchanged with other replicas: %s", error)
            return
        new = {key: choice for key, choice in found.items() if self._made.get(key) != choice}
        self._made = newest(self._made, found)
        for key, choice in sorted(new.items(), key=lambda each: each[1].when_ns):  # a model, and then one version of it
            try:
                await self._follow(key, choice.value)
            except DemiError as error:
                log.warning(
                    "a choice cannot be followed: key=%s value=%s error=%s", key, choice.value, full_text(error)
                )

    async def keep_exchanging(self) -> None:
        """Exchange until cancelled."""
        while True:
            await asyncio.sleep(EXCHANGE_S)
            await self.exchange()
