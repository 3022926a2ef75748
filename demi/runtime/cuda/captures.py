"""What must not meet on a GPU: work that is recorded, and sessions that come and go."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Recordings:
    """Lets one thread record at a time, and none while anything is loaded or let go; those do not wait for each other.

    Making a session synchronizes the whole device, which CUDA forbids, to both, while anything is recorded there; and
    ONNX Runtime ends the process where it cannot destroy its graphs. Whoever loads or lets go waits for a recording,
    which takes milliseconds. Nobody waits for another who loads, which takes seconds: a recording is put off.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._others = 0
        self._recorder: int | None = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Held while work is recorded, where it may be: not while others load, when this is held as `apart` is."""
        with self._change:
            self._change.wait_for(lambda: self._recorder is None)
            may_record = not self._others
            if may_record:
                self._recorder = threading.get_ident()
        if not may_record:
            with self.apart():
                yield False
            return
        try:
            yield True
        finally:
            with self._change:
                self._recorder = None
                self._change.notify_all()

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Held while a session or an engine is made or let go."""
        with self._change:  # what a recording thread itself lets go of cannot wait for it
            self._change.wait_for(lambda: self._recorder in (None, threading.get_ident()))
            self._others += 1
        try:
            yield
        finally:
            with self._change:
                self._others -= 1
                self._change.notify_all()


RECORDINGS = Recordings()
"""Those of this process: CUDA's rules are for all of it."""
