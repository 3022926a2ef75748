"""Layout of convolutions on a GPU: channels last is faster for some models and slower for others, so both are timed."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable

from demi.errors import DemiError
from demi.runtime.base import Session
from demi.tensors import Feeds

log = logging.getLogger("demi.runtime")

CONVOLUTIONS = frozenset({"Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvTranspose"})
WARM_UPS = 3
RUNS = 11
MARGIN = 0.95
"""Largest time of channels last, as a share of the time with channels first, for which it is chosen."""


def has_convolutions(session: Session) -> bool:
    """Return whether a session runs convolutions on a GPU; False for one that cannot list its operators."""
    operators: Callable[[], set[str]] | None = getattr(session, "operators", None)
    return operators is not None and not CONVOLUTIONS.isdisjoint(operators())


def faster_layout(
    session: Session, open_other: Callable[[], Session], feeds: Feeds, clock: Callable[[], float] = time.perf_counter
) -> Session:
    """Return the given session, or one with channels last if it runs and is clearly faster on these inputs."""
    try:
        other = open_other()
        first, last = (_median_s(each, feeds, clock) for each in (session, other))
    except DemiError as error:  # no kernel for that layout, or no memory for both: keep the session that runs
        log.warning("convolutions keep channels first: %s", error)
        return session
    log.info("convolutions: %.3f ms with channels first, %.3f ms with channels last", first * 1e3, last * 1e3)
    return other if last <= MARGIN * first else session


def _median_s(session: Session, feeds: Feeds, clock: Callable[[], float]) -> float:
    for _ in range(WARM_UPS):
        session.run(feeds)
    times = []
    for _ in range(RUNS):
        started = clock()
        session.run(feeds)
        times.append(clock() - started)
    return statistics.median(times)
