"""One instance of a model: a session with its turn on the device, and the way of a batch through it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from demi.errors import DemiError, InferenceError, StoppedError
from demi.runtime.base import Ready, Session, stage, stop
from demi.runtime.cuda.failures import failed_run
from demi.server.scheduling.batch import BatchRun
from demi.server.scheduling.inspection import Inspection
from demi.server.scheduling.job import Part
from demi.server.scheduling.padding import Padding
from demi.server.scheduling.run_errors import find_fault
from demi.server.scheduling.stacking import concatenate, split
from demi.tensors import Feeds

log = logging.getLogger("demi.server")

Outcome = Feeds | Exception
T = TypeVar("T")

QUICK_NS = 250_000
"""A model whose runs take less than this runs on the event loop's own thread: two changes of thread cost as much."""


class Lane:
    """One session and the batches that go through it, one running and at most one prepared ahead.

    `taken`, how many batches it holds, and `called`, whether a thread of it is on its way to take one, belong to the
    batcher, under the lock that both share; so do `handed`, batches that were begun on the event loop's thread and took too
    long there, and `stays_away`, whether that ever happened. `current` is what runs now, and `stuck` whether that goes on
    though nobody waits for it. A batch that fails is run again one request at a time, so that only those
    fail which fail alone.
    """

    def __init__(
        self, name: str, session: Session, padding: Padding, inspection: Inspection, lock: threading.Lock
    ) -> None:
        self.taken = 0
        self.called = 0
        self.current: BatchRun | None = None
        self.stuck = False
        self.handed: list[list[Part]] = []
        self.stays_away = False
        self._wake = threading.Condition(lock)
        self._name = name
        self._session = session
        self._padding = padding
        self._inspection = inspection
        self._all_outputs = [spec.name for spec in session.outputs]
        self._turn = threading.Lock()
        self._pace_ns = 2 * QUICK_NS if session.device.kind == "cpu" else float("inf")

    @property
    def is_quick(self) -> bool:
        """Whether its runs have been so short of late that a thread of their own would cost more than it brings."""
        return self._pace_ns < QUICK_NS and not self.stays_away

    def stop(self) -> bool:
        """Let what runs now end early; whether the session can do that at all."""
        return stop(self._session)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait to be called, under the shared lock."""
        self._wake.wait(timeout_s)
        self.called = 0

    def call(self) -> None:
        """Call one thread that waits, under the shared lock."""
        self.called = 1
        self._wake.notify()

    def call_all(self) -> None:
        """Call every thread that waits, under the shared lock."""
        self._wake.notify_all()

    def run(self, run: BatchRun, free: Callable[[], None]) -> list[Outcome]:
        """The outcome of every part of a batch; `free` is called as soon as the device is free for the next one."""
        parts = run.parts
        joined = attempt(lambda: concatenate(self._padding.stretch([part.feeds for part in parts])))
        if not isinstance(joined, Exception):
            self._inspection.look_at_inputs(parts, joined)
        ready = self._stage(joined)
        run.stacked_ns = time.perf_counter_ns()
        with self._turn:
            run.started_ns = time.perf_counter_ns()
            self.current = run
            try:
                return self._run_parts(run, ready)
            finally:
                run.ended_ns = time.perf_counter_ns()
                self.current = None
                if self.stuck:
                    self.stuck = False
                    log.warning(
                        "%s: the run that nobody waited for has ended after %.1f s", self._name, run.infer_ns / 1e9
                    )
                # The slowest of late: a longer run counts at once, and is forgotten within some dozens of shorter ones.
                self._pace_ns = max(float(run.infer_ns), 0.95 * self._pace_ns)
                free()

    def _stage(self, feeds: Outcome) -> Ready | Exception:
        """The inputs on their way to the device, where the session can take them ahead of its turn."""
        return feeds if isinstance(feeds, Exception) else attempt(lambda: stage(self._session, feeds))

    def _run_parts(self, run: BatchRun, ready: Ready | Exception) -> list[Outcome]:
        """The outputs of every part from one run; where that fails, from a run of its own for each part."""
        outcomes = self._infer(run, run.parts, ready, self._outputs_of(run.parts))
        if not isinstance(outcomes, Exception):
            return outcomes
        if isinstance(outcomes, StoppedError):
            return [outcomes for _ in run.parts]
        if len(run.parts) == 1:
            return [find_fault(outcomes, run.parts[0].feeds)]
        log.warning("%s: a batch of %d requests failed, each now runs alone: %s", self._name, len(run.parts), outcomes)
        return [self._run_alone(run, part) for part in run.parts]

    def _run_alone(self, run: BatchRun, part: Part) -> Outcome:
        if not part.job.wanted:
            return InferenceError("nobody waits for this request any more")
        ready = self._stage(attempt(lambda: concatenate([part.feeds])))
        outcomes = self._infer(run, [part], ready, part.job.outputs)
        return find_fault(outcomes, part.feeds) if isinstance(outcomes, Exception) else outcomes[0]

    def _infer(
        self, run: BatchRun, parts: list[Part], ready: Ready | Exception, outputs: Sequence[str]
    ) -> list[Outcome] | Exception:
        """One run of the session, and the outputs of each part; the error where it fails."""
        if isinstance(ready, Exception):
            return ready
        run.runs += 1
        results = attempt(lambda: ready(outputs))
        if isinstance(results, Exception):
            return results
        found = [results] if len(parts) == 1 and parts[0].is_whole else attempt(lambda: self._split(results, parts))
        if not isinstance(found, Exception):
            self._inspection.look_at_outputs(parts, results, found)
        return found if isinstance(found, Exception) else list(found)

    def _split(self, outputs: Feeds, parts: list[Part]) -> list[Feeds]:
        rows = split(outputs, [part.rows for part in parts])
        return [self._padding.trim(found, part.feeds) for found, part in zip(rows, parts, strict=True)]

    def _outputs_of(self, parts: list[Part]) -> Sequence[str]:
        """Every output that one of the parts asks for."""
        first = parts[0].job.outputs
        if all(part.job.outputs == first for part in parts):
            return first
        wanted = {name for part in parts for name in part.job.outputs}
        return [name for name in self._all_outputs if name in wanted]


def attempt(work: Callable[[], T]) -> T | Exception:
    """What `work` returns, or the error that it raised as one of ours."""
    try:
        return work()
    except DemiError as error:
        return error
    except Exception as error:  # whatever a runtime raises belongs to these requests, not to the loop
        failure = failed_run(f"the session failed: {error}")
        failure.__cause__ = error
        return failure
