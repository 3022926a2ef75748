"""Deadlines and client disconnects, and their cost for quick requests."""

from __future__ import annotations

import asyncio
import gc
import time

import numpy as np
import pytest

from demi.server.errors import DeadlineError
from demi.server.scheduling.deadlines import TIMER_AFTER_S, Deadlines
from demi.server.scheduling.job import Job

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


class LeftError(Exception):
    """The client has disconnected."""


def job() -> Job:
    """Return a job that is never run."""
    return Job({"x": np.zeros(1, np.float32)}, ["y"])


async def test_a_deadline_fails_its_job(anyio_backend):
    """The job fails after its timeout and not before, be it short or long."""
    for timeout_s in (0.01, 3 * TIMER_AFTER_S):
        waiting, started = job(), time.monotonic()
        with (
            Deadlines().enforce(waiting, timeout_s, None),
            pytest.raises(DeadlineError, match=f"within {timeout_s:g} s"),
        ):
            await waiting.future
        assert timeout_s * 0.9 <= time.monotonic() - started < timeout_s + 1


async def test_a_disconnect_is_noticed_for_slow_jobs(anyio_backend):
    """The client's exception resolves a slow job; a quick one is answered without waiting for disconnects."""
    asked: list[Job] = []

    def gone_for(waiting: Job):
        async def gone() -> None:
            asked.append(waiting)
            raise LeftError

        return gone

    deadlines, quick, slow = Deadlines(), job(), job()
    with deadlines.enforce(slow, 30.0, gone_for(slow)):
        with deadlines.enforce(quick, 30.0, gone_for(quick)):
            quick.resolve({})
            await quick.future
        with pytest.raises(LeftError):
            await slow.future

    assert [slow] == asked


async def test_timers_and_tasks_end_with_their_job(anyio_backend):
    """Timers and tasks of an armed job end with it, and the common timer stops once no job is tracked."""
    deadlines = Deadlines()
    before = asyncio.all_tasks()
    never = asyncio.Event()

    async def gone() -> None:
        await never.wait()

    waiting = job()
    with deadlines.enforce(waiting, 30.0, gone):
        await asyncio.sleep(3 * TIMER_AFTER_S)
        assert 1 == len(asyncio.all_tasks() - before)
    await asyncio.sleep(2 * TIMER_AFTER_S)

    assert before == asyncio.all_tasks()
    assert not deadlines._tracked
    assert not deadlines._ticking


async def test_no_reference_cycle_is_left(anyio_backend):
    """A job that ended is freed at once: a reference cycle would keep its request's body until garbage collection."""

    async def gone() -> None:
        await asyncio.Event().wait()

    async def wait() -> None:
        waiting = job()
        with Deadlines().enforce(waiting, 30.0, gone):
            await asyncio.sleep(2 * TIMER_AFTER_S)

    await wait()
    gc.collect()
    gc.disable()
    try:
        await asyncio.gather(*(wait() for _ in range(50)))
        await asyncio.sleep(0.01)
        assert gc.collect() < 50
    finally:
        gc.enable()
