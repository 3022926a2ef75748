"""Sessions timed turn by turn: a noisy machine disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from demi.runtime.base import Session
from demi.tensors import Feeds, TensorSpec, check_feeds

LEAST_TURNS = 3


def with_batch(feeds: Feeds, specs: Sequence[TensorSpec], batch: int) -> Feeds:
    """The feeds repeated or cut to `batch` rows along the free batch axis."""
    return {spec.name: np.resize(feeds[spec.name], (batch, *feeds[spec.name].shape[1:])) for spec in specs}


def median_ms(
    sessions: Sequence[Session], feeds: Feeds, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """The median time of each session on the same inputs, in milliseconds, run turn by turn for about `seconds` in all.

    There are at least three turns, after one that is not timed.
    """
    inputs = [check_feeds(session.inputs, feeds, cast_floats=True) for session in sessions]
    for session, mine in zip(sessions, inputs, strict=True):
        session.run(mine)
    times: list[list[float]] = [[] for _ in sessions]
    stop = clock() + seconds
    while clock() < stop or len(times[0]) < LEAST_TURNS:
        for session, mine, taken in zip(sessions, inputs, times, strict=True):
            start = clock()
            session.run(mine)
            taken.append(clock() - start)
    return [float(np.median(taken)) * 1e3 for taken in times]
