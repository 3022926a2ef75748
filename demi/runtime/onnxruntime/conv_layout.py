"""The layout of convolutions on a GPU: channels last saves transposes in half, and costs some elsewhere. Timing tells."""

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
"""What channels last must take at most, as a part of the other's time, to be worth it."""


def has_convolutions(session: Session) -> bool:
    """Whether a session convolves on a GPU; False for one that does not tell its operators."""
    operators: Callable[[], set[str]] | None = getattr(session, "operators", None)
    return operators is not None and not CONVOLUTIONS.isdisjoint(operators())


def faster_layout(
    session: Session, open_other: Callable[[], Session], feeds: Feeds, clock: Callable[[], float] = time.perf_counter
) -> Session:
    """The given session, or one with channels last where that runs at all, and is clearly faster on these inputs."""
    try:
        other = open_other()
        first, last = (_median_s(each, feeds, clock) for each in (session, other))
    except DemiError as error:  # no kernel for that layout, or no memory for both: there is a session that runs
        log.warning("convolutions stay with channels first: %s", error)
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
