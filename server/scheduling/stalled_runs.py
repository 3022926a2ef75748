"""Stalled runs: runs that go on after their last caller has left. Decides what to do about one; one thread checks all.

A model can loop forever on inputs that match its declaration. Its run is then stopped, and until it has ended the model
is not ready, because every further request would wait in vain.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from enum import Enum
from typing import Protocol

from demi.server.scheduling.batch import BatchRun

CHECK_EVERY_S = 0.05
"""Interval of the checks, in seconds."""
MAX_ON_EVENT_LOOP_NS = 50_000_000
"""Time that a run may occupy the event loop's thread, in nanoseconds; then it is restarted on a thread of its own. With
`CHECK_EVERY_S`, no other client waits longer than a tenth of a second for it."""
STALLED_AFTER_S = 1.0
"""A run that goes on longer than this after its last caller has left is stalled: its model is not ready until it ends."""
MAX_STOPS = 3
STOPS_WITHIN_S = 60.0
PAUSE_S = 30.0
"""After `MAX_STOPS` stopped runs within `STOPS_WITHIN_S`, the model takes no requests for `PAUSE_S`."""


class Action(Enum):
    """Action on a run in progress."""

    NONE = "nothing"
    MOVE = "stop it on the event loop and restart it on a thread of its own"
    MARK = "mark its model as not ready"
    STOP = "stop it"


class HasRuns(Protocol):
    """Owner of runs that can be checked: a batcher."""

    def check_runs(self) -> None:
        """Check the runs in progress."""
        ...


def action_for(run: BatchRun, now_ns: int, stop_after_s: float) -> Action:
    """Return what to do about a run at a time of `time.perf_counter_ns`, and set or reset `run.abandoned_ns`.

    `stop_after_s` is how long a run may go on without a caller, in seconds; 0 sets no limit.
    """
    if run.on_event_loop:
        return Action.MOVE if now_ns - run.started_ns > MAX_ON_EVENT_LOOP_NS else Action.NONE
    if any(part.job.wanted for part in run.parts):
        run.abandoned_ns = 0
        return Action.NONE
    run.abandoned_ns = run.abandoned_ns or now_ns
    abandoned_s = (now_ns - run.abandoned_ns) / 1e9
    if stop_after_s and abandoned_s >= stop_after_s:
        return Action.STOP
    return Action.MARK if abandoned_s >= STALLED_AFTER_S else Action.NONE


class StallDetector:
    """One thread that checks the runs of all models. The event loop cannot do it: a run may be blocking it."""

    def __init__(self) -> None:
        self._owners: weakref.WeakSet[HasRuns] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, owner: HasRuns) -> None:
        """Check an owner's runs from now on. Holds it weakly."""
        with self._lock:
            self._owners.add(owner)
            if self._thread is None:
                self._thread = threading.Thread(target=self._check_all, name="demi-stall-detector", daemon=True)
                self._thread.start()

    def remove(self, owner: HasRuns) -> None:
        """Stop checking an owner's runs."""
        with self._lock:
            self._owners.discard(owner)

    def _check_all(self) -> None:
        while True:
            time.sleep(CHECK_EVERY_S)
            with self._lock:
                owners = list(self._owners)
            for owner in owners:
                with contextlib.suppress(Exception):  # the next check follows soon
                    owner.check_runs()
            del owners[:]
            owner = None  # type: ignore[assignment]  # drops the last reference, which would keep it alive


DETECTOR = StallDetector()
"""The process's only detector."""
