"""Deadlines and client disconnects of jobs.

For the first `TIMER_AFTER_S` a job is only tracked in a dictionary, because a timer and a task for each request cost as
much as a small model's run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from demi.server.errors import DeadlineError
from demi.server.scheduling.job import Job

TIMER_AFTER_S = 0.02
"""Age at which a job gets a timer and a task of its own, in seconds; most jobs are answered before."""

Gone = Callable[[], Awaitable[None]]
"""Waits until the client disconnects, then raises the error for its job."""


class Deadlines:
    """The deadlines of one backend's jobs. Used on the event loop's thread only.

    One timer for all young jobs fires every `TIMER_AFTER_S` and arms the deadlines of those that are no longer young.
    """

    def __init__(self) -> None:
        self._tracked: dict[int, Deadline] = {}
        self._ticking = False

    def enforce(self, job: Job, timeout_s: float, gone: Gone | None) -> Deadline:
        """Return a context manager that fails the job with DeadlineError after `timeout_s` seconds (0 sets no
        deadline), or with the exception of `gone` once its client disconnects. A batch that has not begun skips it."""
        return Deadline(self, job, timeout_s, gone)

    def begin(self, deadline: Deadline) -> None:
        """Track a deadline, or arm it at once if it may pass before the next tick."""
        if 0 < deadline.timeout_s <= 2 * TIMER_AFTER_S:
            deadline.arm()
            return
        self._tracked[id(deadline)] = deadline
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(TIMER_AFTER_S, self._tick)

    def end(self, deadline: Deadline) -> None:
        """Stop tracking a deadline, and disarm it if it was armed."""
        if self._tracked.pop(id(deadline), None) is None:
            deadline.disarm()

    def _tick(self) -> None:
        """Arm the deadlines of jobs older than `TIMER_AFTER_S`. The dictionary holds the oldest first."""
        young_ns = time.perf_counter_ns() - int(TIMER_AFTER_S * 1e9)
        old = []
        for deadline in self._tracked.values():
            if deadline.job.arrived_ns > young_ns:
                break
            old.append(deadline)
        for deadline in old:
            del self._tracked[id(deadline)]
            deadline.arm()
        self._ticking = bool(self._tracked)
        if self._ticking:
            asyncio.get_running_loop().call_later(TIMER_AFTER_S, self._tick)


class Deadline:
    """Context manager that enforces the deadline of one job and notices its client's disconnect."""

    __slots__ = ("_deadlines", "_gone", "_task", "_timer", "job", "timeout_s")

    def __init__(self, deadlines: Deadlines, job: Job, timeout_s: float, gone: Gone | None) -> None:
        self.job = job
        self.timeout_s = timeout_s
        self._gone = gone
        self._deadlines = deadlines
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._deadlines.begin(self)

    def __exit__(self, *_: object) -> None:
        self._deadlines.end(self)

    def arm(self) -> None:
        """Start the timer, and the task that waits for the client to disconnect."""
        loop = asyncio.get_running_loop()
        if self.timeout_s:
            waited_s = (time.perf_counter_ns() - self.job.arrived_ns) / 1e9
            self._timer = loop.call_later(max(self.timeout_s - waited_s, 0.0), self._expire)
        if self._gone:
            self._task = loop.create_task(self._wait(self._gone))

    def disarm(self) -> None:
        """Cancel timer and task, and drop the references to both: a cancelled task would keep its whole request alive
        until the garbage collector runs."""
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
        except Exception as error:  # of whatever class: the job's own caller gets it
            self.job.resolve(error)
