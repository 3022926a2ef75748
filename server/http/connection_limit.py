"""Who is connected over HTTP, and who gives way to whom where there are as many as there may be.

A connection that nobody uses costs a client nothing to hold. So a new one takes the place of the one that has been idle
longest, and where all are busy it may still ask whether the server is well: probes that are turned away have a healthy
server restarted.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Protocol

RESERVE = 16
"""Connections beyond the limit that may ask for health, and for nothing else."""
LOOK_EVERY_S = 0.05
"""Looking for idle ones among thousands takes a millisecond: not for every one that a flood brings."""


class Member(Protocol):
    """A connection, or a handshake that may become one."""

    def idle_since(self) -> tuple[bool, float] | None:
        """Since when it is idle, after whether it has begun to send something; None where it is busy."""

    def give_way(self) -> None:
        """Close."""


class Place(Enum):
    """What a new connection may do."""

    ANYTHING = "anything"
    HEALTH = "health"


class Crowd:
    """All that hold a socket. Belongs to the event loop's thread; `most` of 0 is no limit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._members: dict[Member, None] = {}
        self._reserved: dict[Member, None] = {}
        self._idle: deque[Member] = deque()
        self._looked_at = float("-inf")

    def enter(self, member: Member, now: float) -> Place:
        """Let a new one in: in the place of another where it must be, into the reserve where nobody gives way."""
        self._members[member] = None
        if not self._most or len(self._members) <= self._most or self._make_room(member, now):
            return Place.ANYTHING
        del self._members[member]
        if len(self._reserved) >= RESERVE:
            oldest = next(iter(self._reserved))
            self.leave(oldest)
            oldest.give_way()
        self._reserved[member] = None
        return Place.HEALTH

    def leave(self, member: Member) -> None:
        """Forget one that is closed; a second time does nothing."""
        self._members.pop(member, None)
        self._reserved.pop(member, None)

    def _make_room(self, member: Member, now: float) -> bool:
        """Close one that is idle, those first that have sent nothing and then the oldest; whether there was any."""
        while self._idle or self._look(member, now):
            oldest = self._idle.popleft()
            if oldest in self._members and oldest is not member and oldest.idle_since():
                self.leave(oldest)
                oldest.give_way()
                return True
        return False

    def _look(self, member: Member, now: float) -> bool:
        if now < self._looked_at + LOOK_EVERY_S:
            return False
        self._looked_at = now
        found = [(since, other) for other in self._members if other is not member and (since := other.idle_since())]
        found.sort(key=lambda pair: pair[0])
        self._idle.extend(other for _, other in found)
        return bool(found)
