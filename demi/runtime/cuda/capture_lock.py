"""Keep CUDA graph capture apart from creating and destroying sessions."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class CaptureLock:
    """Lets one thread capture a graph at a time, and no thread while sessions are created or destroyed.

    Creating a session synchronizes the whole device, which CUDA forbids during a capture, and ONNX Runtime aborts the
    process when it cannot destroy its graphs. Creating or destroying a session waits for a capture, which takes
    milliseconds. A capture never waits for a session, which takes seconds: it is postponed to a later run.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._session_changes = 0
        self._capturing: int | None = None
        """Id of the thread that captures."""

    @contextlib.contextmanager
    def capturing(self) -> Iterator[bool]:
        """Hold the lock for a capture; yields False when a session is being changed, and nothing may be captured."""
        with self._change:
            self._change.wait_for(lambda: self._capturing is None)
            may_capture = not self._session_changes
            if may_capture:
                self._capturing = threading.get_ident()
        if not may_capture:
            with self.changing_sessions():
                yield False
            return
        try:
            yield True
        finally:
            with self._change:
                self._capturing = None
                self._change.notify_all()

    @contextlib.contextmanager
    def changing_sessions(self) -> Iterator[None]:
        """Hold the lock while a session or an engine is created or destroyed; several threads may hold it so."""
        with self._change:  # a thread that captures may destroy a session itself, and must not wait for its own capture
            self._change.wait_for(lambda: self._capturing in (None, threading.get_ident()))
            self._session_changes += 1
        try:
            yield
        finally:
            with self._change:
                self._session_changes -= 1
                self._change.notify_all()


CAPTURE_LOCK = CaptureLock()
"""The lock of this process: CUDA's rules hold for all of its threads."""
