"""Batches that form while the device runs: one queue, the instances it feeds, and the threads that carry it out."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from demi.errors import DeviceLostError, StoppedError
from demi.runtime.base import Session
from demi.server.errors import UnavailableError
from demi.server.scheduling.batch import BatchPolicy, BatchRun
from demi.server.scheduling.inspection import Inspection
from demi.server.scheduling.instance import Lane, Outcome, attempt
from demi.server.scheduling.job import Job, Part
from demi.server.scheduling.padding import Padding
from demi.server.scheduling.queue import Waiting
from demi.server.scheduling.stalled_runs import LOOKOUT, MOST_STOPS, REST_S, STOPS_WITHIN_S, Verdict, judge

log = logging.getLogger("demi.server")

RESTARTS = 3
RESTARTS_WITHIN_S = 60.0
"""A thread that dies is replaced, unless so many have died within that time: then something is wrong for good."""


class Batcher:
    """Joins the requests of one model into batches and runs them; the event loop stays free.

    Owns the queue and a lane for each session, each with two threads: one runs a batch, the other waits until the next
    batch is full, joins its inputs ahead, and waits for its turn; a batch that is not full is left to grow until a lane
    is free. Models so small that a change of thread would take longer than their run are run on the event loop itself.

    `submit` and `close` belong to the event loop's thread. A batch that fails is run again one request at a time. A
    thread that dies fails its batch only and is replaced; when that does not help, `ended` says why and every caller
    is told.
    """

    def __init__(
        self,
        name: str,
        sessions: Sequence[Session],
        policy: BatchPolicy,
        padding: Padding,
        inspection: Inspection | None = None,
        observe: Callable[[BatchRun], None] | None = None,
    ) -> None:
        self._name = name
        self._policy = policy
        self._observe = observe
        self._waiting = Waiting(policy.max_queue, policy.max_rows)
        self._lock = threading.Lock()
        looks = inspection or Inspection()
        self._lanes = [Lane(name, session, padding, looks, self._lock) for session in sessions]
        self._closed = False
        self._telling: asyncio.AbstractEventLoop | None = None
        self._ended = ""
        self._deaths: deque[float] = deque(maxlen=RESTARTS + 1)
        self._stops: deque[float] = deque(maxlen=MOST_STOPS)
        self._threads: list[threading.Thread] = []
        for lane in self._lanes:
            self._start(lane)
            self._start(lane)
        LOOKOUT.watch(self)

    @property
    def queue_length(self) -> int:
        """How many requests wait for their run."""
        return len(self._waiting)

    @property
    def ended(self) -> str:
        """Why it runs nothing any more; empty while it does."""
        return self._ended

    @property
    def held_up(self) -> str:
        """Why it answers nobody for now; empty while it does."""
        if all(lane.stuck for lane in self._lanes):
            return "a run goes on though nobody waits for it any more"
        if len(self._stops) == MOST_STOPS and self._stops[-1] - self._stops[0] < STOPS_WITHIN_S:
            rest_s = self._stops[-1] + REST_S - time.monotonic()
            if rest_s > 0:
                return f"{MOST_STOPS} runs without end had to be stopped; it is asked again in {rest_s:.0f} s"
        return ""

    def check_room(self) -> None:
        """Raise UnavailableError when as many requests as allowed are waiting already."""
        with self._lock:
            self._check_room()

    def submit(self, job: Job) -> None:
        """Let a job wait for its run; UnavailableError when the queue is full or nothing runs any more.

        A free device is told once the event loop has handled whatever else is there to read: requests that came
        together share a run, and threads take turns less often. A batch that is full has nothing to wait for.
        """
        with self._lock:
            self._check_room()
            self._waiting.add(job)
            may_take = self._lane_for_next() is not None
            is_full = may_take and self._waiting.has_full_batch
        loop = job.future.get_loop()
        if is_full:
            self._tell_free()
        elif may_take and self._telling is not loop:
            self._telling = loop
            loop.call_soon(self._tell_free)

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
        with self._lock:
            self._closed = True
            self._ended = self._ended or reason
            jobs = self._waiting.clear()
            for lane in self._lanes:
                jobs += [part.job for parts in lane.handed for part in parts]
                lane.handed.clear()
                lane.call_all()
        _tell([(job, UnavailableError(reason)) for job in jobs])

    def _tell_free(self) -> None:
        """Give the queue to a lane that may take from it: to one of its threads, or right here where it is quick."""
        self._telling = None
        with self._lock:
            lane = self._lane_for_next()
            if lane is None:
                return
            if lane.taken or not lane.is_quick or self._policy.max_delay_us:
                lane.call()
                return
            parts = self._take(lane)
        if parts:
            self._serve_here(lane, parts)
            self._telling = asyncio.get_running_loop()
            self._telling.call_soon(self._tell_free)  # for whatever did not share this run

    def _lane_for_next(self) -> Lane | None:
        """The lane that may take the next batch: a free one, or one that may prepare a full batch ahead."""
        if self._closed or not len(self._waiting):
            return None
        lane = self._lanes[0] if len(self._lanes) == 1 else min(self._lanes, key=lambda lane: lane.taken + lane.called)
        return lane if self._may_take(lane, lane.called) else None

    def _may_take(self, lane: Lane, promised: int = 0) -> bool:
        """Whether a lane may take a batch, `promised` others besides those that it has."""
        if lane.taken + promised == 0:
            return len(self._waiting) > 0
        return lane.taken + promised == 1 and self._waiting.has_full_batch

    def _take(self, lane: Lane) -> list[Part]:
        """The next batch for a lane; another lane is called for what is left."""
        parts = self._waiting.take()
        lane.called = 0
        lane.taken += bool(parts)
        if other := self._lane_for_next():
            other.call()
        return parts

    def _start(self, lane: Lane) -> None:
        thread = threading.Thread(target=self._work, args=(lane,), name=f"demi-{self._name}", daemon=True)
        self._threads = [known for known in self._threads if known.is_alive()] + [thread]
        thread.start()

    def _work(self, lane: Lane) -> None:
        """One thread's life: batch after batch until the batcher is closed."""
        try:
            while parts := self._next(lane):
                self._serve(lane, parts)
        except BaseException as error:
            log.critical("a thread of %s has died", self._name, exc_info=error)
            self._bury(error)
            if not self._closed:
                self._start(lane)

    def _bury(self, error: BaseException) -> None:
        """Count a death; when there have been too many of late, end for good."""
        self._deaths.append(time.monotonic())
        if len(self._deaths) > RESTARTS and self._deaths[-1] - self._deaths[0] < RESTARTS_WITHIN_S:
            self._end(f"the model's threads keep dying, the last with {type(error).__name__}: {error}")

    def _next(self, lane: Lane) -> list[Part]:
        """A lane's next batch, waiting for it as the policy says; empty when closed."""
        with self._lock:
            while not self._closed:
                if lane.handed:
                    lane.taken += 1
                    return lane.handed.pop(0)
                if not self._may_take(lane):
                    lane.wait()
                elif (delay_s := self._delay_s()) > 0:
                    lane.wait(delay_s)
                elif parts := self._take(lane):
                    return parts
            return []

    def _delay_s(self) -> float:
        """How long a batch that is not full should still wait for more."""
        if not self._policy.max_delay_us or not self._waiting.may_grow:
            return 0.0
        return (self._waiting.oldest_ns + self._policy.max_delay_us * 1000 - time.perf_counter_ns()) / 1e9

    def _serve(self, lane: Lane, parts: list[Part], *, here: bool = False) -> None:
        """One batch from its requests to their answers; whatever goes wrong belongs to those requests.

        `here` is the event loop's thread, where a run that takes too long is stopped and handed to one of the lane's own.
        """
        run = BatchRun(parts, time.perf_counter_ns(), here=here)
        try:
            outcomes = lane.run(run, lambda: self._free(lane))
        except BaseException as error:
            if not run.ended_ns:
                self._free(lane)
            reason = UnavailableError(f"the model's thread died with {type(error).__name__}")
            _tell([(part.job, reason) for part in parts])
            raise
        if any(isinstance(outcome, StoppedError) for outcome in outcomes) and any(part.job.wanted for part in parts):
            self._hand_over(lane, parts)
            return
        self._answer(run, outcomes)
        if lost := next((outcome for outcome in outcomes if isinstance(outcome, DeviceLostError)), None):
            log.critical("%s: %s", self._name, lost)
            self._end(f"its device is lost: {lost.message}")

    def _serve_here(self, lane: Lane, parts: list[Part]) -> None:
        """One batch on the event loop's own thread, which nothing that a session raises may end."""
        try:
            self._serve(lane, parts, here=True)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            log.critical("a run of %s has died", self._name, exc_info=error)
            self._bury(error)

    def _hand_over(self, lane: Lane, parts: list[Part]) -> None:
        """Let a thread of the lane run a batch again that was stopped while someone waits for it."""
        with self._lock:
            lane.stays_away = True
            lane.handed.append(parts)
            lane.call()

    def look(self) -> None:
        """Called twenty times a second, on a thread of its own: stop runs that hold up others, and those without end."""
        now_ns = time.perf_counter_ns()
        for lane in self._lanes:
            if run := lane.current:
                self._look_at(lane, run, now_ns)

    def _look_at(self, lane: Lane, run: BatchRun, now_ns: int) -> None:
        match judge(run, now_ns, self._policy.stop_after_s):
            case Verdict.MOVE:
                lane.stop()
            case Verdict.STUCK | Verdict.STOP as verdict:
                if not lane.stuck:
                    lane.stuck = True
                    log.error(
                        "%s: a run goes on though nobody waits for it any more; not ready until it ends", self._name
                    )
                    if lane.current is not run:  # it has ended meanwhile
                        lane.stuck = False
                if verdict is Verdict.STOP:
                    self._stop(lane, run)

    def _stop(self, lane: Lane, run: BatchRun) -> None:
        can_stop = lane.stop()  # again and again: it may have been between two runs
        if run.stop_told:
            return
        run.stop_told = True
        self._stops.append(time.monotonic())
        words = "is being stopped" if can_stop else "cannot be stopped on this device"
        log.error(
            "%s: a run without end %s, %.1f s after its last caller", self._name, words, self._policy.stop_after_s
        )

    def _free(self, lane: Lane) -> None:
        """The device is free for a lane's next batch, for which the thread comes back."""
        with self._lock:
            lane.taken -= 1

    def _answer(self, run: BatchRun, outcomes: list[Outcome]) -> None:
        """Tell the callers whose last rows these were, and those whose rows failed."""
        told: list[tuple[Job, Outcome]] = []
        for part, outcome in zip(run.parts, outcomes, strict=True):
            job = part.job
            if isinstance(outcome, Exception):
                job.failed = True
                told.append((job, outcome))
                continue
            if part.is_whole:
                told.append((job, outcome))
                continue
            with self._lock:
                complete = job.put(part, outcome)
            if complete:
                told.append((job, attempt(job.join)))
        run.answered_ns = time.perf_counter_ns()
        began_ns, compute_ns = run.began_ns, run.compute_ns
        for part in run.parts:
            part.job.queue_ns, part.job.compute_ns = began_ns - part.job.arrived_ns, compute_ns
        _tell(told, self._observe, run)


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
        if asyncio._get_running_loop() is loop:
            resolve()
        else:
            loop.call_soon_threadsafe(resolve)
    except RuntimeError:  # the server has stopped meanwhile, and nobody waits any more
        log.debug("answers came after the event loop had closed")
