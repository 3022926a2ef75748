"""The limit on HTTP connections.

Idle connections cost a client nothing, so beyond the limit a new connection replaces the one that has been idle longest. If
all are busy, the new one may still request the health paths: failing probes would make the orchestrator restart a healthy
server.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Protocol

RESERVE = 16
"""Extra connections beyond the limit that may request the health paths only."""
SCAN_INTERVAL_S = 0.05
"""Scanning thousands of connections for idle ones takes a millisecond, too long to repeat for each one of a flood."""
MANY = 1000
"""Connections from which on scans are that far apart; fewer are scanned more often, since that takes less."""


class Member(Protocol):
    """A connection, or a TLS handshake that may become one."""

    def idle_since(self) -> tuple[bool, float] | None:
        """Return whether it has begun to send a request, and the time since when it is idle; None if it is busy."""

    def evict(self) -> None:
        """Close the connection to make room for another."""


class Admission(Enum):
    """The requests that a connection may send."""

    FULL = "full"
    HEALTH_ONLY = "health only"


class ConnectionLimit:
    """All open connections, up to `most` (0 means no limit). Used on the event loop's thread only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._members: dict[Member, None] = {}
        self._reserved: dict[Member, None] = {}
        self._idle: deque[Member] = deque()
        self._scanned_at = float("-inf")

    def enter(self, member: Member, now: float) -> Admission:
        """Admit a new connection. Beyond the limit it replaces an idle one, or is admitted for health checks only."""
        self._members[member] = None
        if not self._most or len(self._members) <= self._most or self._make_room(member, now):
            return Admission.FULL
        del self._members[member]
        if len(self._reserved) >= RESERVE:
            oldest = next(iter(self._reserved))
            self.leave(oldest)
            oldest.evict()
        self._reserved[member] = None
        return Admission.HEALTH_ONLY

    def leave(self, member: Member) -> None:
        """Remove a connection that is closed; removing it again does nothing."""
        self._members.pop(member, None)
        self._reserved.pop(member, None)

    def _make_room(self, member: Member, now: float) -> bool:
        """Evict an idle connection, preferring those that have sent nothing, then the oldest; return whether there was one."""
        while self._idle or self._find_idle(member, now):
            oldest = self._idle.popleft()
            if oldest in self._members and oldest is not member and oldest.idle_since():
                self.leave(oldest)
                oldest.evict()
                return True
        return False

    def _find_idle(self, member: Member, now: float) -> bool:
        if now < self._scanned_at + SCAN_INTERVAL_S * min(1.0, len(self._members) / MANY):
            return False
        self._scanned_at = now
        found = [(since, other) for other in self._members if other is not member and (since := other.idle_since())]
        found.sort(key=lambda pair: pair[0])
        self._idle.extend(other for _, other in found)
        return bool(found)
