"""The replicas of one deployment, asked together: the one place that uses Ray's handles."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from demi.errors import DemiError

log = logging.getLogger("demi.server")

READ_S = 10.0
"""Time limit for answers that only read, in seconds; a replica that takes longer is left out."""
CHANGE_S = 900.0
"""Time limit for loading and unloading, in seconds: models take minutes to warm up, and admitted requests to end."""

Answer = Callable[..., Awaitable[Any]]
"""Answers one question, `(name, *arguments)`, from this replica alone."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of one replica: its value, or the DemiError that it raised."""

    replica: str
    value: Any = None
    error: DemiError | None = None


class Peers(Protocol):
    """All running replicas, this one included."""

    replica: str
    """Name of this replica."""

    async def ask(self, question: str, *arguments: Any, timeout_s: float) -> list[Reply | BaseException]:
        """Ask every running replica, and return their replies; an exception for each one that did not answer in time."""


class RayPeers(Peers):
    """The replicas of the deployment that this process is a replica of, reached through its handle."""

    def __init__(self) -> None:
        from ray import serve

        context = serve.get_replica_context()
        self.replica = context.replica_id.unique_id
        self.deployment = context.deployment
        self.app = context.app_name
        self._handle: Any = None

    async def ask(self, question: str, *arguments: Any, timeout_s: float) -> list[Reply | BaseException]:
        """Ask every running replica, and return their replies; an exception for each one that did not answer in time."""
        from ray import serve

        if self._handle is None:
            self._handle = serve.get_deployment_handle(self.deployment, self.app)
        response = self._handle.broadcast("answer", question, *arguments)
        found: list[Reply | BaseException] = await response.results_async(timeout_s=timeout_s, return_exceptions=True)
        return found


class Fleet:
    """Asks all replicas, and completes their replies with this replica's own: Ray lists a new one only after a while."""

    def __init__(self, peers: Peers, answer: Answer) -> None:
        self._peers = peers
        self._answer = answer

    @property
    def replica(self) -> str:
        """Name of this replica."""
        return self._peers.replica

    async def read(self, question: str, *arguments: Any) -> dict[str, Any]:
        """Return the answers by replica. Replicas without one are left out; raises this replica's own DemiError."""
        replies = await self._ask(question, arguments, READ_S)
        mine = replies.pop(self.replica, None) or await reply_to(self.replica, self._answer, question, *arguments)
        if mine.error:
            raise mine.error
        return {mine.replica: mine.value} | {name: each.value for name, each in replies.items() if not each.error}

    async def change(self, question: str, *arguments: Any) -> None:
        """Have all replicas do something, this one first: if it raises a DemiError, nothing else is asked.

        Afterwards raises the first DemiError of another replica.
        """
        await self._answer(question, *arguments)
        replies = await self._ask(question, arguments, CHANGE_S)
        for reply in replies.values():
            if reply.error:
                raise reply.error

    async def _ask(self, question: str, arguments: tuple[Any, ...], timeout_s: float) -> dict[str, Reply]:
        try:
            found = await self._peers.ask(question, *arguments, timeout_s=timeout_s)
        except Exception as error:  # no replica is listed yet, or none answered in time
            log.warning("other replicas cannot be asked: question=%s error=%s", question, error)
            return {}
        lost = [each for each in found if not isinstance(each, Reply)]
        if lost:
            log.warning("replicas without an answer: question=%s count=%d first=%s", question, len(lost), lost[0])
        return {each.replica: each for each in found if isinstance(each, Reply)}


async def reply_to(replica: str, answer: Answer, question: str, *arguments: Any) -> Reply:
    """Return the reply of a replica to one question; a DemiError travels as a value, others are raised."""
    try:
        return Reply(replica, await answer(question, *arguments))
    except DemiError as error:
        return Reply(replica, error=error)
