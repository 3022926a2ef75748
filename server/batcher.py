"""Batches that form while the device runs: the policy, and the threads that carry it out."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from demi.errors import DemiError, InferenceError
from demi.runtime.base import Ready, Session, stage
from demi.tensors import Feeds
from server.errors import UnavailableError
from server.jobs import Job, Part
from server.padding import Padding
from server.stacking import concatenate, split
from server.waiting import Waiting

log = logging.getLogger("demi.server")

Outcome = Feeds | Exception
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How many rows one run takes, how many requests may wait, and how long a batch that is not full waits for more."""

    max_rows: int
    max_queue: int
    max_delay_us: int = 0


@dataclass(slots=True)
class BatchRun:
    """What one batch did and when, in nanoseconds of `time.perf_counter_ns`."""

    parts: list[Part]
    taken_ns: int
    stacked_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    answered_ns: int = 0
    runs: int = 0
    """How often the session ran: more than once only where a batch failed."""

    @property
    def rows(self) -> int:
        """How many rows it had."""
        return sum(part.rows for part in self.parts)

    @property
    def input_ns(self) -> int:
        """How long joining the inputs took."""
        return self.stacked_ns - self.taken_ns

    @property
    def infer_ns(self) -> int:
        """How long the session ran."""
        return self.ended_ns - self.started_ns

    @property
    def output_ns(self) -> int:
        """How long splitting the outputs took."""
        return self.answered_ns - self.ended_ns

    @property
    def compute_ns(self) -> int:
        """How long joining, running and splitting took."""
        return self.input_ns + self.infer_ns + self.output_ns

    def queue_ns(self, part: Part) -> int:
        """How long a part waited: to be taken, and for the device once its batch was ready."""
        return self.started_ns - part.job.arrived_ns - self.input_ns


class Batcher:
    """Joins the requests of one model into batches and runs them; the event loop stays free.

    Owns the queue, the device's turn and two threads: one runs a batch, the other waits until the next batch is full,
    joins its inputs ahead, sends them to the device where the session can, and waits for its turn; a batch that is not
    full is left to grow until the device is free. `submit` and `close` belong to the event loop's thread. A batch that
    fails is run again one request at a time, so that only those fail which fail alone; its threads carry on, and should
    one of them end all the same, `ended` says why and every caller is told.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        policy: BatchPolicy,
        padding: Padding,
        observe: Callable[[BatchRun], None] | None = None,
    ) -> None:
        self._name = name
        self._session = session
        self._all_outputs = [spec.name for spec in session.outputs]
        self._policy = policy
        self._padding = padding
        self._observe = observe
        self._waiting = Waiting(policy.max_queue, policy.max_rows)
        self._wake = threading.Condition()
        self._turn = threading.Lock()
        self._taken = 0
        self._closed = False
        self._telling: asyncio.AbstractEventLoop | None = None
        self._ended = ""
        self._threads = [
            threading.Thread(target=self._work, name=f"demi-{name}-{index}", daemon=True) for index in range(2)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queue_length(self) -> int:
        """How many requests wait for their run."""
        return len(self._waiting)

    @property
    def ended(self) -> str:
        """Why it runs nothing any more; empty while it does."""
        return self._ended

    def check_room(self) -> None:
        """Raise UnavailableError when as many requests as allowed are waiting already."""
        with self._wake:
            self._check_room()

    def submit(self, job: Job) -> None:
        """Let a job wait for its run; UnavailableError when the queue is full or nothing runs any more.

        A free device is told once the event loop has handled whatever else is there to read: requests that came
        together share a run, and the two threads take turns less often.
        """
        with self._wake:
            self._check_room()
            self._waiting.add(job)
            may_take = self._may_take()
        loop = job.future.get_loop()
        if may_take and self._telling is not loop:
            self._telling = loop
            loop.call_soon(self._tell_free)

    def _tell_free(self) -> None:
        self._telling = None
        with self._wake:
            if self._may_take():
                self._wake.notify()

    def close(self) -> None:
        """Let the threads end after what they run; the callers of jobs still waiting are told."""
        self._end("the model is being unloaded")

    def join(self, timeout_s: float) -> bool:
        """Wait for the threads of a closed batcher; whether they have ended."""
        stop = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, stop - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _check_room(self) -> None:
        if self._ended:
            raise UnavailableError(f"the model answers no more: {self._ended}", retry_after_s=None)
        if not self._waiting.make_room():
            raise UnavailableError(f"the queue is full: {len(self._waiting)} requests are waiting for this model")

    def _end(self, reason: str) -> None:
        with self._wake:
            self._closed = True
            self._ended = self._ended or reason
            jobs = self._waiting.clear()
            self._wake.notify_all()
        _tell([(job, UnavailableError(reason)) for job in jobs])

    def _work(self) -> None:
        """One thread's life: batch after batch until the batcher is closed."""
        try:
            while parts := self._next():
                self._serve(parts)
        except BaseException as error:
            log.critical("the batcher of %s has ended", self._name, exc_info=error)
            self._end(f"the model's batcher ended with {type(error).__name__}: {error}")

    def _next(self) -> list[Part]:
        """The next batch, waiting for it as the policy says; empty when closed."""
        with self._wake:
            while not self._closed:
                if not self._may_take():
                    self._wake.wait()
                elif (delay_s := self._delay_s()) > 0:
                    self._wake.wait(delay_s)
                elif parts := self._waiting.take():
                    self._taken += 1
                    return parts
            return []

    def _may_take(self) -> bool:
        """Whether a batch may leave the queue: the device is free, or the batch is full and the only one ahead."""
        if self._taken == 0:
            return len(self._waiting) > 0
        return self._taken == 1 and self._waiting.has_full_batch

    def _delay_s(self) -> float:
        """How long a batch that is not full should still wait for more."""
        if not self._policy.max_delay_us or not self._waiting.may_grow:
            return 0.0
        return (self._waiting.oldest_ns + self._policy.max_delay_us * 1000 - time.perf_counter_ns()) / 1e9

    def _serve(self, parts: list[Part]) -> None:
        """One batch from its requests to their answers; whatever goes wrong belongs to those requests."""
        run = BatchRun(parts, time.perf_counter_ns())
        try:
            outcomes = self._run(run)
        except BaseException as error:
            self._give_up(parts, error)
            raise
        self._answer(run, outcomes)

    def _run(self, run: BatchRun) -> list[Outcome]:
        ready = _attempt(lambda: stage(self._session, self._join(run.parts)))
        run.stacked_ns = time.perf_counter_ns()
        with self._turn:
            run.started_ns = time.perf_counter_ns()
            try:
                return self._run_parts(run, ready)
            finally:
                run.ended_ns = time.perf_counter_ns()
                with self._wake:
                    self._taken -= 1

    def _join(self, parts: list[Part]) -> Feeds:
        return concatenate(self._padding.stretch([part.feeds for part in parts]))

    def _run_parts(self, run: BatchRun, ready: Ready | Exception) -> list[Outcome]:
        """The outputs of every part from one run; where that fails, from a run of its own for each part."""
        outcomes = self._infer(run, run.parts, ready, self._outputs_of(run.parts))
        if not isinstance(outcomes, Exception):
            return outcomes
        if len(run.parts) == 1:
            return [outcomes]
        log.warning("%s: a batch of %d requests failed, each now runs alone: %s", self._name, len(run.parts), outcomes)
        return [self._run_alone(run, part) for part in run.parts]

    def _run_alone(self, run: BatchRun, part: Part) -> Outcome:
        if not part.job.wanted:
            return InferenceError("nobody waits for this request any more")
        ready = _attempt(lambda: stage(self._session, concatenate([part.feeds])))
        outcomes = self._infer(run, [part], ready, part.job.outputs)
        return outcomes if isinstance(outcomes, Exception) else outcomes[0]

    def _infer(
        self, run: BatchRun, parts: list[Part], ready: Ready | Exception, outputs: Sequence[str]
    ) -> list[Outcome] | Exception:
        """One run of the session, and the outputs of each part; the error where it fails."""
        if isinstance(ready, Exception):
            return ready
        run.runs += 1
        results = _attempt(lambda: ready(outputs))
        if isinstance(results, Exception):
            return results
        if len(parts) == 1 and parts[0].is_whole:
            return [results]
        return _attempt(lambda: self._split(results, parts))

    def _split(self, outputs: Feeds, parts: list[Part]) -> list[Outcome]:
        rows = split(outputs, [part.rows for part in parts])
        return [self._padding.trim(found, part.feeds) for found, part in zip(rows, parts, strict=True)]

    def _outputs_of(self, parts: list[Part]) -> Sequence[str]:
        """Every output that one of the parts asks for."""
        first = parts[0].job.outputs
        if all(part.job.outputs == first for part in parts):
            return first
        wanted = {name for part in parts for name in part.job.outputs}
        return [name for name in self._all_outputs if name in wanted]

    def _answer(self, run: BatchRun, outcomes: list[Outcome]) -> None:
        """Tell the callers whose last rows these were, and those whose rows failed."""
        told: list[tuple[Job, Outcome]] = []
        for part, outcome in zip(run.parts, outcomes, strict=True):
            job = part.job
            if isinstance(outcome, Exception):
                job.failed = True
                told.append((job, outcome))
                continue
            with self._wake:
                complete = job.put(part, outcome)
            if complete:
                told.append((job, _attempt(job.join)))
        run.answered_ns = time.perf_counter_ns()
        for part in run.parts:
            part.job.queue_ns, part.job.compute_ns = run.queue_ns(part), run.compute_ns
        _tell(told, self._observe, run)

    def _give_up(self, parts: list[Part], error: BaseException) -> None:
        reason = UnavailableError(f"the model's batcher ended with {type(error).__name__}", retry_after_s=None)
        _tell([(part.job, reason) for part in parts])


def _attempt(work: Callable[[], T]) -> T | Exception:
    """What `work` returns, or the error that it raised as one of ours."""
    try:
        return work()
    except DemiError as error:
        return error
    except Exception as error:  # whatever a runtime raises belongs to these requests, not to the loop
        failure = InferenceError(f"the session failed: {error}")
        failure.__cause__ = error
        return failure


def _tell(
    told: list[tuple[Job, Outcome]],
    observe: Callable[[BatchRun], None] | None = None,
    run: BatchRun | None = None,
) -> None:
    """Resolve all these futures with one call on the event loop's thread."""
    jobs = [part.job for part in run.parts] if run else [job for job, _ in told]
    if not jobs:
        return

    def resolve() -> None:
        for job, outcome in told:
            job.resolve(outcome)
        if observe and run:
            observe(run)

    loop: asyncio.AbstractEventLoop = jobs[0].future.get_loop()
    try:
        loop.call_soon_threadsafe(resolve)
    except RuntimeError:  # the server has stopped meanwhile, and nobody waits any more
        log.debug("answers came after the event loop had closed")
