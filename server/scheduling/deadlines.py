"""When to stop waiting for an answer: the deadline has passed, or the caller has left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from demi.server.errors import DeadlineError
from demi.server.scheduling.job import Job

LOOK_AFTER_S = 0.02
"""Only requests that take longer than this are watched: a timer and a task for each cost as much as a small run."""

Gone = Callable[[], Awaitable[None]]
"""What waits for a caller to leave, and then raises."""


class Patience:
    """Watches the jobs of one backend; belongs to the event loop's thread.

    A young job is an entry in a dictionary, which one timer for all looks through every `LOOK_AFTER_S`.
    """

    def __init__(self) -> None:
        self._young: dict[int, Watch] = {}
        self._ticking = False

    def watch(self, job: Job, timeout_s: float, gone: Gone | None) -> Watch:
        """For the length of a block, resolve a job with DeadlineError after `timeout_s` seconds (0 is no limit), and
        with what `gone` raises once its caller leaves. A batch that has not begun then passes the job over."""
        return Watch(self, job, timeout_s, gone)

    def begin(self, watch: Watch) -> None:
        """A job begins to wait."""
        if 0 < watch.timeout_s <= 2 * LOOK_AFTER_S:
            watch.start()
            return
        self._young[id(watch)] = watch
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(LOOK_AFTER_S, self._tick)

    def end(self, watch: Watch) -> None:
        """A job waits no more."""
        if self._young.pop(id(watch), None) is None:
            watch.stop()

    def _tick(self) -> None:
        """Start to watch those that are not young any more, the oldest of whom come first."""
        old_ns = time.perf_counter_ns() - int(LOOK_AFTER_S * 1e9)
        old = []
        for watch in self._young.values():
            if watch.job.arrived_ns > old_ns:
                break
            old.append(watch)
        for watch in old:
            del self._young[id(watch)]
            watch.start()
        self._ticking = bool(self._young)
        if self._ticking:
            asyncio.get_running_loop().call_later(LOOK_AFTER_S, self._tick)


class Watch:
    """One job that is watched for the length of a block."""

    __slots__ = ("_gone", "_patience", "_task", "_timer", "job", "timeout_s")

    def __init__(self, patience: Patience, job: Job, timeout_s: float, gone: Gone | None) -> None:
        self.job = job
        self.timeout_s = timeout_s
        self._gone = gone
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._patience.begin(self)

    def __exit__(self, *_: object) -> None:
        self._patience.end(self)

    def start(self) -> None:
        """Set a timer for the deadline, and look whether the caller leaves."""
        loop = asyncio.get_running_loop()
        if self.timeout_s:
            waited_s = (time.perf_counter_ns() - self.job.arrived_ns) / 1e9
            self._timer = loop.call_later(max(self.timeout_s - waited_s, 0.0), self._expire)
        if self._gone:
            self._task = loop.create_task(self._wait(self._gone))

    def stop(self) -> None:
        """Watch no more. Nothing is kept: a cancelled task would hold all of its request until the collector comes."""
        if self._timer:
            self._timer.cancel()
        if self._task:
            self._task.cancel()
        self._timer = self._task = self._gone = None

    def _expire(self) -> None:
        text = f"no answer within {self.timeout_s:g} s"
        self.job.resolve(DeadlineError(text, hint="raise the `timeout` parameter"))

    async def _wait(self, gone: Gone) -> None:
        try:
            await gone()
        except Exception as error:  # whatever it is, the job's own caller gets it
            self.job.resolve(error)
