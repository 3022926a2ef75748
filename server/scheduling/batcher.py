"""Dynamic batching: one queue per model, the instances it feeds, and the threads that run the batches."""

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
from demi.server.scheduling.instance import Instance, Outcome, attempt
from demi.server.scheduling.job import Job, Part
from demi.server.scheduling.padding import Padding
from demi.server.scheduling.patience import Patience
from demi.server.scheduling.queue import Queue
from demi.server.scheduling.stalled_runs import DETECTOR, MAX_STOPS, PAUSE_S, STOPS_WITHIN_S, Action, action_for

log = logging.getLogger("demi.server")

RESTARTS = 3
RESTARTS_WITHIN_S = 60.0
"""A worker thread that crashes is replaced. After more than `RESTARTS` crashes within that time the batcher closes."""


class Batcher:
    """Joins the requests of one model into batches and runs them, without blocking the event loop.

    Owns the queue and one instance per session, each with two threads: while one runs a batch, the other waits until
    the next batch is full, joins its inputs ahead, and waits for its turn. A batch that is not full can grow until an
    instance is free. Models whose runs are shorter than a thread switch run on the event loop itself.

    Call `submit` and `close` on the event loop's thread only. If a batch fails, its requests are run again one by one.
    If a thread crashes, only its batch fails, and the thread is replaced. After too many crashes the batcher closes,
    `ended` holds the reason, and all waiting requests fail with it.
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
        self._queue = Queue(policy.max_queue, policy.max_rows)
        self._lock = threading.Lock()
        inspected = inspection or Inspection()
        self._instances = [Instance(name, session, padding, inspected, self._lock) for session in sessions]
        self._closed = False
        self._waking: asyncio.AbstractEventLoop | None = None
        self._patience, self._rounds = Patience(), 0
        self._ended = ""
        self._crashes: deque[float] = deque(maxlen=RESTARTS + 1)
        self._stops: deque[float] = deque(maxlen=MAX_STOPS)
        self._threads: list[threading.Thread] = []
        for instance in self._instances:
            self._start(instance)
            self._start(instance)
        DETECTOR.add(self)

    @property
    def queue_length(self) -> int:
        """Number of requests waiting for a run."""
        return len(self._queue)

    @property
    def ended(self) -> str:
        """The reason that the batcher has closed; empty while it is open."""
        return self._ended

    @property
    def stalled(self) -> str:
        """The reason that no request is answered for now; empty if requests are answered."""
        if self._instances[0].stalled and all(instance.stalled for instance in self._instances):
            return "a run goes on although all of its callers have left"
        if len(self._stops) == MAX_STOPS and self._stops[-1] - self._stops[0] < STOPS_WITHIN_S:
            pause_s = self._stops[-1] + PAUSE_S - time.monotonic()
            if pause_s > 0:
                return f"{MAX_STOPS} stalled runs had to be stopped; requests are accepted again in {pause_s:.0f} s"
        return ""

    @property
    def trouble(self) -> str:
        """The reason that no request is answered, for good or for now; empty if requests are answered."""
        return self._ended or self.stalled

    def check_room(self) -> None:
        """Raise UnavailableError if the queue is full or the batcher is closed."""
        if self._ended or not self._queue.has_room:
            with self._lock:
                self._check_room()

    def submit(self, job: Job) -> None:
        """Queue a job. Raise UnavailableError if the queue is full or the batcher is closed.

        A free instance is woken only after the event loop has drained its pending reads, and while several clients ask
        some turns later, so that requests that came together share a run and threads switch less often. For a full batch
        it is woken at once.
        """
        loop = job.future.get_loop()
        with self._lock:
            self._check_room()
            self._queue.add(job)
            is_full = self._queue.has_full_batch
            if self._waking is loop and not is_full:
                return
            may_take = self._instance_for_next() is not None
        if not may_take:
            return
        if is_full:
            self._wake_free()
        else:
            self._waking = loop
            loop.call_soon(self._wake_free)

    def close(self) -> None:
        """End the threads after their current runs; waiting jobs fail with UnavailableError."""
        self._end("the model is being unloaded")

    def join(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for the threads of a closed batcher. Return whether they have ended."""
        stop = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, stop - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _check_room(self) -> None:
        if self._ended:
            raise UnavailableError(f"the model no longer answers: {self._ended}", retry_after_s=None)
        if not self._queue.make_room():
            raise UnavailableError(f"the queue is full: {len(self._queue)} requests are waiting for this model")

    def _end(self, reason: str) -> None:
        with self._lock:
            self._closed = True
            self._ended = self._ended or reason
            jobs = self._queue.clear()
            for instance in self._instances:
                jobs += [part.job for parts in instance.handed_over for part in parts]
                instance.handed_over.clear()
                instance.call_all()
        _resolve([(job, UnavailableError(reason)) for job in jobs])

    def _wake_free(self) -> None:
        """Wake a thread of the instance that may take the next batch, or run it right here if its runs are quick."""
        with self._lock:
            if self._rounds < self._patience.turns and self._queue.may_grow:
                self._rounds += 1
                asyncio.get_running_loop().call_soon(self._wake_free)
                return
            self._waking, self._rounds = None, 0
            instance = self._instance_for_next()
            if instance is None:
                return
            if instance.taken or not instance.is_quick or self._policy.max_delay_us:
                instance.call()
                return
            parts = self._take(instance)
        if parts:
            self._serve_here(instance, parts)
        if self._waking is None and len(self._queue):  # jobs that did not fit into this run
            self._waking = asyncio.get_running_loop()
            self._waking.call_soon(self._wake_free)

    def _instance_for_next(self) -> Instance | None:
        """Return the instance that may take the next batch: a free one, or one that may prepare a full batch ahead."""
        if self._closed or not len(self._queue):
            return None
        instance = (
            self._instances[0]
            if len(self._instances) == 1
            else min(self._instances, key=lambda instance: instance.taken + instance.called)
        )
        return instance if self._may_take(instance, instance.called) else None

    def _may_take(self, instance: Instance, promised: int = 0) -> bool:
        """Return whether an instance may take a batch besides those that it holds and `promised` others."""
        if instance.taken + promised == 0:
            return len(self._queue) > 0
        return instance.taken + promised == 1 and self._queue.has_full_batch

    def _take(self, instance: Instance) -> list[Part]:
        """Return the next batch for an instance, and call another instance if jobs are left."""
        parts = self._queue.take()
        if parts:
            self._patience.ran(len(parts))
        instance.called = 0
        instance.taken += bool(parts)
        if other := self._instance_for_next():
            other.call()
        return parts

    def _start(self, instance: Instance) -> None:
        thread = threading.Thread(target=self._work, args=(instance,), name=f"demi-{self._name}", daemon=True)
        self._threads = [known for known in self._threads if known.is_alive()] + [thread]
        thread.start()

    def _work(self, instance: Instance) -> None:
        """Body of a worker thread: run batch after batch until the batcher is closed."""
        try:
            while parts := self._next(instance):
                self._serve(instance, parts)
        except BaseException as error:
            log.critical("a worker thread of %s has crashed", self._name, exc_info=error)
            self._record_crash(error)
            if not self._closed:
                self._start(instance)

    def _record_crash(self, error: BaseException) -> None:
        """Count a worker crash. Close the batcher after more than `RESTARTS` within `RESTARTS_WITHIN_S`."""
        self._crashes.append(time.monotonic())
        if len(self._crashes) > RESTARTS and self._crashes[-1] - self._crashes[0] < RESTARTS_WITHIN_S:
            self._end(f"the model's threads keep crashing, the last with {type(error).__name__}: {error}")

    def _next(self, instance: Instance) -> list[Part]:
        """Wait for and return an instance's next batch; empty once the batcher is closed."""
        with self._lock:
            while not self._closed:
                if instance.handed_over:
                    instance.taken += 1
                    return instance.handed_over.pop(0)
                if not self._may_take(instance):
                    instance.wait()
                elif (delay_s := self._delay_s()) > 0:
                    instance.wait(delay_s)
                elif parts := self._take(instance):
                    return parts
            return []

    def _delay_s(self) -> float:
        """Return how long a batch that is not full should wait for more requests, in seconds."""
        if not self._policy.max_delay_us or not self._queue.may_grow:
            return 0.0
        return (self._queue.oldest_ns + self._policy.max_delay_us * 1000 - time.perf_counter_ns()) / 1e9

    def _serve(self, instance: Instance, parts: list[Part], *, on_event_loop: bool = False) -> None:
        """Run one batch and answer its requests; errors are theirs only.

        On the event loop's thread, a run that takes too long is stopped and handed over to one of the instance's own.
        """
        run = BatchRun(parts, time.perf_counter_ns(), instance.device, on_event_loop=on_event_loop)
        try:
            outcomes = instance.run(run, lambda: self._free(instance))
        except BaseException as error:
            if not run.ended_ns:
                self._free(instance)
            reason = UnavailableError(f"the model's thread crashed with {type(error).__name__}")
            _resolve([(part.job, reason) for part in parts])
            raise
        if any(isinstance(outcome, StoppedError) for outcome in outcomes) and any(part.job.wanted for part in parts):
            self._hand_over(instance, parts)
            return
        self._answer(run, outcomes)
        if lost := next((outcome for outcome in outcomes if isinstance(outcome, DeviceLostError)), None):
            log.critical("%s: %s", self._name, lost)
            self._end(f"its device is lost: {lost.message}")

    def _serve_here(self, instance: Instance, parts: list[Part]) -> None:
        """Run one batch on the event loop's thread, which no exception of a session may end."""
        try:
            self._serve(instance, parts, on_event_loop=True)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            log.critical("a run of %s has crashed", self._name, exc_info=error)
            self._record_crash(error)

    def _hand_over(self, instance: Instance, parts: list[Part]) -> None:
        """Let a thread of the instance rerun a batch that was stopped while callers wait for it."""
        with self._lock:
            instance.off_event_loop = True
            instance.handed_over.append(parts)
            instance.call()

    def check_runs(self) -> None:
        """Stop runs that block the event loop, and stalled ones. Called on the detector's thread, 20 times a second."""
        now_ns = time.perf_counter_ns()
        for instance in self._instances:
            if run := instance.current:
                self._check_run(instance, run, now_ns)

    def _check_run(self, instance: Instance, run: BatchRun, now_ns: int) -> None:
        match action_for(run, now_ns, self._policy.stop_after_s):
            case Action.MOVE:
                instance.stop()
            case Action.MARK | Action.STOP as action:
                if not instance.stalled:
                    instance.stalled = True
                    log.error(
                        "%s: a run goes on although all of its callers have left; not ready until it ends", self._name
                    )
                    if instance.current is not run:  # it has ended in the meantime
                        instance.stalled = False
                if action is Action.STOP:
                    self._stop(instance, run)

    def _stop(self, instance: Instance, run: BatchRun) -> None:
        can_stop = instance.stop()  # on every check: the last call may have come between two runs
        if run.stop_logged:
            return
        run.stop_logged = True
        self._stops.append(time.monotonic())
        words = "is being stopped" if can_stop else "cannot be stopped on this device"
        log.error(
            "%s: a stalled run %s, %.1f s after its last caller left", self._name, words, self._policy.stop_after_s
        )

    def _free(self, instance: Instance) -> None:
        """Count a batch of an instance as done: the device can take the next one."""
        with self._lock:
            instance.taken -= 1

    def _answer(self, run: BatchRun, outcomes: list[Outcome]) -> None:
        """Resolve the jobs that are complete with this run, and those that failed in it."""
        resolved: list[tuple[Job, Outcome]] = []
        for part, outcome in zip(run.parts, outcomes, strict=True):
            job = part.job
            if isinstance(outcome, Exception):
                job.failed = True
                resolved.append((job, outcome))
            elif part.is_whole:
                resolved.append((job, outcome))
            else:
                with self._lock:
                    complete = job.put(part, outcome)
                if complete:
                    resolved.append((job, attempt(job.join)))
        run.answered_ns = time.perf_counter_ns()
        began_ns, compute_ns = run.began_ns, run.compute_ns
        for part in run.parts:
            job = part.job
            job.queue_ns, job.compute_ns = began_ns - job.arrived_ns, compute_ns
        _resolve(resolved, self._observe, run)


def _resolve(
    resolved: list[tuple[Job, Outcome]],
    observe: Callable[[BatchRun], None] | None = None,
    run: BatchRun | None = None,
) -> None:
    """Resolve these jobs, and observe their run, with one call on the event loop's thread."""
    jobs = [part.job for part in run.parts] if run else [job for job, _ in resolved]
    if not jobs:
        return

    def resolve() -> None:
        for job, outcome in resolved:
            job.resolve(outcome)
        if observe and run:
            observe(run)

    loop: asyncio.AbstractEventLoop = jobs[0].future.get_loop()
    try:
        if asyncio._get_running_loop() is loop:
            resolve()
        else:
            loop.call_soon_threadsafe(resolve)
    except RuntimeError:  # the server has stopped in the meantime, and no caller waits
        log.debug("answers came after the event loop had closed")
