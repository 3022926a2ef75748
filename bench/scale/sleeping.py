"""Replicas whose models wait as for a GPU: the process sleeps, and the cores are free for others.

Two cores cannot show that four replicas do four times the work of one, unless the work is somebody else's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from demi.runtime.base import Session
from demi.server.models.loading import Loaded, load_bundle
from demi.server.ray.replica import Replica
from demi.server.settings import ServeSettings
from demi.tensors import Feeds

DEVICE_S = 0.02
"""Time of one run."""


class SleepingSession:
    """A session that takes at least `DEVICE_S` for each run, whatever the batch."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs, self.device = session.inputs, session.outputs, session.device

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        """Run the model, and wait for the rest of the time."""
        ends = time.perf_counter() + DEVICE_S
        found = self._session.run(feeds, outputs)
        time.sleep(max(ends - time.perf_counter(), 0.0))
        return found


def load_sleeping(path: Path, settings: ServeSettings) -> Loaded:
    """Load a bundle whose sessions take `DEVICE_S` for each run."""
    loaded = load_bundle(path, settings)
    return replace(loaded, sessions=tuple(map(SleepingSession, loaded.sessions)))


class SleepingReplica(Replica):
    """A replica of Demi whose models wait."""

    load = staticmethod(load_sleeping)
