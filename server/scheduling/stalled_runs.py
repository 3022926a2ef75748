"""Runs that go on though nobody waits for them: what is to be done about one, and the thread that looks.

A model can loop for ever on inputs that fit its declaration. Its run is then stopped, and until that has worked the
model is not ready: whoever asked it would wait for nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from enum import Enum
from typing import Protocol

from demi.server.scheduling.batch import BatchRun

LOOK_EVERY_S = 0.05
HERE_NS = 50_000_000
"""How long a run may take on the event loop's thread, where nobody else is answered meanwhile: then it starts anew on a
thread of its own. With `LOOK_EVERY_S`, a tenth of a second at most."""
STUCK_AFTER_S = 1.0
"""A run that goes on for longer after its last caller has left is stuck: until it ends, its model is not ready."""
MOST_STOPS = 3
STOPS_WITHIN_S = 60.0
REST_S = 30.0
"""Where so many runs had to be stopped within that time, the model rests for this long before it is asked again."""


class Verdict(Enum):
    """What to do about a run."""

    LEAVE = "leave it"
    MOVE = "stop it here, and start it on another thread"
    STUCK = "take the model out of readiness"
    STOP = "stop it"


class Looked(Protocol):
    """What has runs to look at."""

    def look(self) -> None:
        """Look at the runs that are under way now."""
        ...


def judge(run: BatchRun, now_ns: int, stop_after_s: float) -> Verdict:
    """What to do about a run at a time of `time.perf_counter_ns`; it notes in the run since when nobody wants it.

    `stop_after_s` is how long a run may go on after that; 0 is no limit.
    """
    if run.here:
        return Verdict.MOVE if now_ns - run.started_ns > HERE_NS else Verdict.LEAVE
    if any(part.job.wanted for part in run.parts):
        run.unwanted_ns = 0
        return Verdict.LEAVE
    run.unwanted_ns = run.unwanted_ns or now_ns
    alone_s = (now_ns - run.unwanted_ns) / 1e9
    if stop_after_s and alone_s >= stop_after_s:
        return Verdict.STOP
    return Verdict.STUCK if alone_s >= STUCK_AFTER_S else Verdict.LEAVE


class Lookout:
    """One thread that looks at the runs of every model, since the event loop's own may be what a run holds up."""

    def __init__(self) -> None:
        self._watched: weakref.WeakSet[Looked] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, looked: Looked) -> None:
        """Look at these runs from now on, until nobody else holds what has them."""
        with self._lock:
            self._watched.add(looked)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="demi-lookout", daemon=True)
                self._thread.start()

    def forget(self, looked: Looked) -> None:
        """Look at these no more."""
        with self._lock:
            self._watched.discard(looked)

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            with self._lock:
                watched = list(self._watched)
            for looked in watched:
                with contextlib.suppress(Exception):  # the next look is soon
                    looked.look()
            del watched[:]
            looked = None  # type: ignore[assignment]  # or the last one would live on


LOOKOUT = Lookout()
"""The one of this process."""
