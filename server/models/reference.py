"""The FP32 model beside a half one: loaded when it is first needed, so that half's memory is all that most servers use."""

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
    """A model's FP32 backend, loaded once, in another thread, by the first who asks. Belongs to the event loop's thread."""

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
        """Whether it takes memory already."""
        return self._backend is not None

    def load(self) -> None:
        """Load it now, on this thread, before anything is served."""
        self._backend = self._make(self._open())

    async def backend(self) -> Backend:
        """The backend, loaded now if it was not; the DemiError that says why it cannot be."""
        async with self._lock:
            if self._crash is not None:
                raise self._crash
            if self._backend is None:
                log.info("loading the FP32 reference of %s", self._name)
                try:
                    session = await asyncio.get_running_loop().run_in_executor(None, self._open)
                except CrashError as error:  # which it would again, for every request that asks
                    self._crash = error
                    raise
                self._backend = self._make(session)
                if self._closed:
                    self._backend.close()
        return self._backend

    def close(self) -> None:
        """Let it end; a run that has begun goes on."""
        self._closed = True
        if self._backend:
            self._backend.close()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of a closed one; whether it has ended."""
        return self._backend is None or self._backend.join(timeout_s)
