"""How long a request is waited for, and what is spent on those that are quick."""

from __future__ import annotations

import asyncio
import gc
import time

import numpy as np
import pytest

from demi.server.errors import DeadlineError
from demi.server.scheduling.deadlines import LOOK_AFTER_S, Patience
from demi.server.scheduling.job import Job

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


class LeftError(Exception):
    """The caller has left."""


def job() -> Job:
    """A job that nobody runs."""
    return Job({"x": np.zeros(1, np.float32)}, ["y"])


async def test_a_deadline_is_kept(anyio_backend):
    """After the time it was given, and not before; a short one as a longer one."""
    for timeout_s in (0.01, 3 * LOOK_AFTER_S):
        waiting, started = job(), time.monotonic()
        with Patience().watch(waiting, timeout_s, None), pytest.raises(DeadlineError, match=f"within {timeout_s:g} s"):
            await waiting.future
        assert timeout_s * 0.9 <= time.monotonic() - started < timeout_s + 1


async def test_callers_who_leave_are_noticed_once_it_takes_long(anyio_backend):
    """What they raise reaches the job; a quick one is answered before anybody looks."""
    asked: list[Job] = []

    def gone_for(waiting: Job):
        async def gone() -> None:
            asked.append(waiting)
            raise LeftError

        return gone

    patience, quick, slow = Patience(), job(), job()
    with patience.watch(slow, 30.0, gone_for(slow)):
        with patience.watch(quick, 30.0, gone_for(quick)):
            quick.resolve({})
            await quick.future
        with pytest.raises(LeftError):
            await slow.future

    assert [slow] == asked


async def test_nothing_is_left_behind(anyio_backend):
    """Timers and tasks of a job that was watched end with it, and the common timer when nobody waits."""
    patience = Patience()
    before = asyncio.all_tasks()
    never = asyncio.Event()

    async def gone() -> None:
        await never.wait()

    waiting = job()
    with patience.watch(waiting, 30.0, gone):
        await asyncio.sleep(3 * LOOK_AFTER_S)
        assert 1 == len(asyncio.all_tasks() - before)
    await asyncio.sleep(2 * LOOK_AFTER_S)

    assert before == asyncio.all_tasks()
    assert not patience._young
    assert not patience._ticking


async def test_no_garbage_is_left_for_the_collector(anyio_backend):
    """Whoever was watched is forgotten at once: its request's body would wait for the collector with it."""

    async def gone() -> None:
        await asyncio.Event().wait()

    async def wait() -> None:
        waiting = job()
        with Patience().watch(waiting, 30.0, gone):
            await asyncio.sleep(2 * LOOK_AFTER_S)

    await wait()
    gc.collect()
    gc.disable()
    try:
        await asyncio.gather(*(wait() for _ in range(50)))
        await asyncio.sleep(0.01)
        assert gc.collect() < 50
    finally:
        gc.enable()
