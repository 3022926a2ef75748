"""Patience of a free instance with requests that are still on their way, in turns of the event loop."""

from __future__ import annotations

from dataclasses import dataclass

TURNS = 16
"""The requests of gRPC's clients arrive one by one, a turn or two apart, and a run of several costs hardly more than a run
of one. A turn takes a few microseconds."""
REMEMBERED = 64
"""Runs for which it goes on waiting after one that several requests shared."""


@dataclass(slots=True)
class Patience:
    """Waits while several clients ask at the same time; a lone client never waits."""

    _left: int = 0

    @property
    def turns(self) -> int:
        """Turns of the event loop to wait before the next run."""
        return TURNS if self._left else 0

    def ran(self, requests: int) -> None:
        """Take note of a run that so many requests shared."""
        self._left = REMEMBERED if requests > 1 else max(0, self._left - 1)
