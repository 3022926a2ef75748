"""When to stop waiting for an answer: the deadline has passed, or the caller has left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

from server.errors import DeadlineError
from server.jobs import Job

LOOK_AFTER_S = 0.02
"""Only requests that take longer than this are watched for callers who leave: a watch costs as much as a small run."""

Gone = Callable[[], Awaitable[None]]
"""What waits for a caller to leave, and then raises."""


@contextlib.contextmanager
def patience(job: Job, timeout_s: float, gone: Gone | None) -> Iterator[None]:
    """For the length of the block, resolve a job with DeadlineError after `timeout_s` seconds (0 is no limit), and with
    what `gone` raises once its caller leaves. A batch that has not begun then passes the job over."""
    loop = asyncio.get_running_loop()
    watch: list[asyncio.Task[None]] = []
    timers: list[asyncio.TimerHandle] = []
    if timeout_s:
        timers.append(loop.call_later(timeout_s, _expire, job, timeout_s))
    if gone:
        timers.append(loop.call_later(LOOK_AFTER_S, lambda: watch.append(loop.create_task(_watch(job, gone)))))
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for task in watch:
            task.cancel()


def _expire(job: Job, timeout_s: float) -> None:
    job.resolve(DeadlineError(f"no answer within {timeout_s:g} s", hint="raise the `timeout` parameter"))


async def _watch(job: Job, gone: Gone) -> None:
    try:
        await gone()
    except Exception as error:  # whatever it is, the job's own caller gets it
        job.resolve(error)
