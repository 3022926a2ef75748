"""SIGINT and SIGTERM as a flag, so that a run ends after its current step."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_S = 1.0
"""A signal this long after the first one is meant as a second."""


class Stop:
    """Flag that a signal has asked for the end.

    Not a threading.Event: its lock would wait for itself where a second signal arrives while the first one sets it.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Ask for the end."""
        self._is_set = True

    def is_set(self) -> bool:
        """Return whether the end was asked for."""
        return self._is_set


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a flag; a second one, `AGAIN_S` later, does what it always did.

    One Ctrl-C may arrive twice: from the terminal, and forwarded by a supervisor or a launcher.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    first = math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        first = min(first, time.monotonic())
        stop.set()
        handler = former[signal.Signals(number)]
        if time.monotonic() - first >= AGAIN_S and callable(handler):
            handler(number, frame)

    for number in former:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
