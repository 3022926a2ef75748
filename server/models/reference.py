"""FP32 reference of a half model, loaded on first use: most servers never need its memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from demi.errors import CrashError
from demi.runtime.base import Session
from demi.server.models.backend import Backend

log = logging.getLogger("demi.server")

OpenSession = Callable[[], Session]
MakeBackend = Callable[[Session], Backend]


class Reference:
    """FP32 backend of a model, loaded once, on a worker thread, on first use. Used on the event loop's thread only."""

    def __init__(self, name: str, open_session: OpenSession, make_backend: MakeBackend) -> None:
        self._name = name
        self._open = open_session
        self._make = make_backend
        self._lock = asyncio.Lock()
        self._backend: Backend | None = None
        self._crash: CrashError | None = None
        self._closed = False

    @property
    def is_loaded(self) -> bool:
        """Return whether it is loaded and occupies memory."""
        return self._backend is not None

    def load(self) -> None:
        """Load it now, on this thread, before any request is served."""
        self._backend = self._make(self._open())

    async def backend(self) -> Backend:
        """Return the backend, loading it if necessary. Raise the DemiError that prevents loading."""
        async with self._lock:
            if self._crash is not None:
                raise self._crash
            if self._backend is None:
                log.info("loading the FP32 reference of %s", self._name)
                try:
                    session = await asyncio.get_running_loop().run_in_executor(None, self._open)
                except CrashError as error:  # loading would crash again for every further request
                    self._crash = error
                    raise
                self._backend = self._make(session)
                if self._closed:
                    self._backend.close()
        return self._backend

    def close(self) -> None:
        """Close the backend; a run in progress completes."""
        self._closed = True
        if self._backend:
            self._backend.close()

    def join(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for a closed backend. Return whether it has ended."""
        return self._backend is None or self._backend.join(timeout_s)
