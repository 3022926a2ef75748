"""One thread that runs a session, and the bounded queue in front of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from dataclasses import dataclass, field

from demi.runtime.base import Session
from demi.tensors import Feeds
from server.errors import UnavailableError

log = logging.getLogger("demi.server")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Inputs that wait for their run, and the future of the caller who waits for the outputs."""

    feeds: Feeds
    outputs: list[str]
    future: asyncio.Future[Feeds] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def resolve(self, result: Feeds | Exception) -> None:
        """Tell the caller, who may have left; on the event loop's thread."""
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class Worker:
    """Runs the jobs of one model, one at a time, in a thread of its own; the event loop stays free.

    Owns the queue and the thread. `submit` belongs to the event loop's thread. A job that fails tells its own caller and
    the worker carries on; jobs whose callers have left are passed over.
    """

    def __init__(self, name: str, session: Session, max_queue: int) -> None:
        self._session = session
        self._max_queue = max_queue
        self._jobs: deque[Job] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"demi-{name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs; a dead one makes the model not ready."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Queue a job; UnavailableError when as many as allowed are waiting already."""
        with self._wake:
            if len(self._jobs) >= self._max_queue:
                self._forget_the_gone()
            if len(self._jobs) >= self._max_queue:
                raise UnavailableError(f"the queue is full: {len(self._jobs)} requests are waiting for this model")
            self._jobs.append(job)
            self._wake.notify()

    def close(self) -> None:
        """Let the thread end after the job it runs; the callers of jobs still waiting are told."""
        with self._wake:
            self._closed = True
            waiting = list(self._jobs)
            self._jobs.clear()
            self._wake.notify()
        for job in waiting:
            _tell(job, UnavailableError("the model is being unloaded"))

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread of a closed worker; whether it has ended."""
        self._thread.join(timeout_s)
        return not self.alive

    def _forget_the_gone(self) -> None:
        self._jobs = deque(job for job in self._jobs if not job.future.done())

    def _work(self) -> None:
        while (job := self._next()) is not None:
            if not job.future.done():
                _tell(job, self._run(job))

    def _next(self) -> Job | None:
        with self._wake:
            while not self._jobs and not self._closed:
                self._wake.wait()
            return self._jobs.popleft() if self._jobs else None

    def _run(self, job: Job) -> Feeds | Exception:
        try:
            return self._session.run(job.feeds, job.outputs)
        except Exception as error:  # whatever a runtime raises belongs to this job's caller, not to the loop
            return error


def _tell(job: Job, result: Feeds | Exception) -> None:
    loop = job.future.get_loop()
    try:
        loop.call_soon_threadsafe(job.resolve, result)
    except RuntimeError:  # the server has stopped meanwhile, and nobody waits any more
        log.debug("an answer came after the event loop had closed")
