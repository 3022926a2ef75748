"""Instance of a model: a session, its exclusive turn on the device, and a batch's path through it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from demi.errors import DemiError, InferenceError, StoppedError
from demi.runtime.base import Ready, Session, stage, stop
from demi.runtime.cuda.failures import run_failure
from demi.server.scheduling.batch import BatchRun
from demi.server.scheduling.inspection import Inspection
from demi.server.scheduling.job import Part
from demi.server.scheduling.padding import Padding
from demi.server.scheduling.run_errors import classify_run_error
from demi.server.scheduling.stacking import concatenate, cut, one_row, split
from demi.tensors import Feeds

log = logging.getLogger("demi.server")

Outcome = Feeds | Exception
T = TypeVar("T")

QUICK_NS = 250_000
"""Runs shorter than this, in nanoseconds, take place on the event loop's thread: two thread switches cost as much."""

DECAY = 0.95
"""Decay, per run, of the slowest recent run: it is forgotten within some dozens of quick ones."""

LAST_RUNS = 3
"""Runs of whose times the median counts: on a busy machine a single run takes long now and then, whatever it computes."""


class Instance:
    """One session and its batches: one running and at most one prepared ahead.

    The batcher owns these, under the lock that both share: `taken`, the number of batches it holds; `called`, whether
    one of its threads is about to take one; `handed_over`, batches that took too long on the event loop's thread and
    are run again here; and `off_event_loop`, whether that has ever happened. `current` is the run in progress, and
    `stalled` whether it goes on without a caller. If a batch fails, its requests are run again one by one, so that only
    those fail that fail alone.
    """

    def __init__(
        self, name: str, session: Session, padding: Padding, inspection: Inspection, lock: threading.Lock
    ) -> None:
        self.taken = 0
        self.called = 0
        self.current: BatchRun | None = None
        self.stalled = False
        self.handed_over: list[list[Part]] = []
        self.off_event_loop = False
        self._wake = threading.Condition(lock)
        self._name = name
        self.device = str(session.device)
        self._session = session
        self._padding = padding
        self._inspection = inspection
        self._all_outputs = [spec.name for spec in session.outputs]
        self._turn = threading.Lock()
        self._slowest_ns = 2 * QUICK_NS if session.device.kind == "cpu" else float("inf")
        self._last_ns = deque([self._slowest_ns] * LAST_RUNS, maxlen=LAST_RUNS)

    @property
    def is_quick(self) -> bool:
        """Return whether recent runs have been so short that a thread switch would cost more than it saves."""
        return self._slowest_ns < QUICK_NS and not self.off_event_loop

    def stop(self) -> bool:
        """Ask the session to stop the current run. Return whether the session supports that."""
        return stop(self._session)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait to be called. The caller holds the shared lock."""
        self._wake.wait(timeout_s)
        self.called = 0

    def call(self) -> None:
        """Wake one waiting thread. The caller holds the shared lock."""
        self.called = 1
        self._wake.notify()

    def call_all(self) -> None:
        """Wake all waiting threads. The caller holds the shared lock."""
        self._wake.notify_all()

    def run(self, run: BatchRun, free: Callable[[], None]) -> list[Outcome]:
        """Run a batch and return the outcome of every part. Calls `free` as soon as the device can take the next one."""
        ready = self._stage(run.parts, inspect=True)
        run.stacked_ns = time.perf_counter_ns()
        with self._turn:
            run.started_ns = time.perf_counter_ns()
            self.current = run
            try:
                return self._run_parts(run, ready)
            finally:
                run.ended_ns = time.perf_counter_ns()
                self.current = None
                if self.stalled:
                    self.stalled = False
                    log.warning("%s: the stalled run has ended after %.1f s", self._name, run.infer_ns / 1e9)
                self._last_ns.append(run.infer_ns)
                self._slowest_ns = max(sorted(self._last_ns)[LAST_RUNS // 2], DECAY * self._slowest_ns)
                free()

    def _stage(self, parts: list[Part], *, inspect: bool) -> Ready | Exception:
        """Join the inputs, inspect them, and start copying them to the device ahead of the turn, if the session can."""
        try:
            joined = concatenate(self._padding.stretch([part.feeds for part in parts]))
            if inspect:
                self._inspection.check_inputs(parts, joined)
            if any(part.rows for part in parts):
                return stage(self._session, joined)
            ready = stage(self._session, one_row(joined))
            return lambda outputs: cut(ready(outputs), 0, 0)
        except Exception as error:
            return as_failure(error)

    def _run_parts(self, run: BatchRun, ready: Ready | Exception) -> list[Outcome]:
        """Return the outcome of every part from one run or, if that fails, from a run of each part alone."""
        outcomes = self._infer(run, run.parts, ready, self._outputs_of(run.parts))
        if not isinstance(outcomes, Exception):
            return outcomes
        if isinstance(outcomes, StoppedError):
            return [outcomes for _ in run.parts]
        if len(run.parts) == 1:
            return [classify_run_error(outcomes, run.parts[0].feeds)]
        log.warning("%s: a batch of %d requests failed, so each is run alone: %s", self._name, len(run.parts), outcomes)
        return [self._run_alone(run, part) for part in run.parts]

    def _run_alone(self, run: BatchRun, part: Part) -> Outcome:
        if not part.job.wanted:
            return InferenceError("no caller waits for this request any more")
        ready = self._stage([part], inspect=False)
        outcomes = self._infer(run, [part], ready, part.job.outputs)
        return classify_run_error(outcomes, part.feeds) if isinstance(outcomes, Exception) else outcomes[0]

    def _infer(
        self, run: BatchRun, parts: list[Part], ready: Ready | Exception, outputs: Sequence[str]
    ) -> list[Outcome] | Exception:
        """Run the session once. Return the outputs of each part, or the error if it fails."""
        if isinstance(ready, Exception):
            return ready
        run.runs += 1
        try:
            results = ready(outputs)
            found = [results] if len(parts) == 1 and parts[0].is_whole else self._split(results, parts)
            self._inspection.check_outputs(parts, results, found)
        except Exception as error:
            return as_failure(error)
        return list(found)

    def _split(self, outputs: Feeds, parts: list[Part]) -> list[Feeds]:
        rows = split(outputs, [part.rows for part in parts])
        return [self._padding.trim(found, part.feeds) for found, part in zip(rows, parts, strict=True)]

    def _outputs_of(self, parts: list[Part]) -> Sequence[str]:
        """Return every output that one of the parts requests."""
        first = parts[0].job.outputs
        if all(part.job.outputs == first for part in parts[1:]):
            return first
        wanted = {name for part in parts for name in part.job.outputs}
        return [name for name in self._all_outputs if name in wanted]


def attempt(work: Callable[[], T]) -> T | Exception:
    """Return the result of `work`, or the error it raised, as a DemiError."""
    try:
        return work()
    except Exception as error:
        return as_failure(error)


def as_failure(error: Exception) -> DemiError:
    """Return an error as a DemiError: whatever a runtime raises must fail these requests only."""
    if isinstance(error, DemiError):
        return error
    failure = run_failure(f"the session failed: {error}")
    failure.__cause__ = error
    return failure
