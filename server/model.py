"""One model version: its state, and the way from checked inputs to outputs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from demi.tensors import Feeds
from server.answers import Answer, Wish
from server.batcher import Batcher, BatchPolicy
from server.errors import UnavailableError
from server.jobs import Job
from server.loading import Loaded
from server.padding import Padding
from server.patience import Gone, patience
from server.signature import Signature
from server.statistics import Statistics


class State(Enum):
    """Where a model is in its life, by the names of the repository index."""

    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "UNLOADING"
    FAILED = "UNAVAILABLE"


class Model:
    """A model version from loading to the end. Owns its batcher and its state; lives on the event loop's thread.

    A request is admitted first, while its body may still be on its way, and then inferred: what has been admitted is
    answered, also when the model starts draining in between.
    """

    def __init__(
        self, name: str, version: str, *, max_queue: int, max_delay_us: int = 0, path: Path | None = None
    ) -> None:
        self.name = name
        self.version = version
        self.path = path
        self.in_flight = 0
        self.statistics = Statistics()
        self._max_queue = max_queue
        self._max_delay_us = max_delay_us
        self._padding: Padding | None = None
        self._state = State.LOADING
        self._reason = ""
        self._loaded: Loaded | None = None
        self._batcher: Batcher | None = None

    @property
    def state(self) -> State:
        """Its state now; a model whose batcher has died is FAILED."""
        if self._state is State.READY and self._ended:
            return State.FAILED
        return self._state

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        if self._reason or self.state is State.READY:
            return self._reason
        return {State.LOADING: "the model is loading", State.DRAINING: "the model is shutting down"}.get(
            self.state, self._ended
        )

    @property
    def in_service(self) -> bool:
        """Whether the server's readiness waits for it: not where it never loaded, is unloading or was unloaded."""
        return self._state in (State.LOADING, State.READY)

    @property
    def loaded(self) -> Loaded:
        """What is served; UnavailableError before it is there."""
        if self._loaded is None:
            raise self._unavailable()
        return self._loaded

    @property
    def signature(self) -> Signature:
        """What it takes and gives; UnavailableError before it is loaded."""
        return self.loaded.signature

    @property
    def precision(self) -> str:
        """The precision it really runs in; empty before it is loaded."""
        return self._loaded.precision if self._loaded else ""

    @property
    def queue_length(self) -> int:
        """How many requests wait for their run."""
        return self._batcher.queue_length if self._batcher else 0

    def start(self, loaded: Loaded) -> None:
        """Become ready to serve what was loaded."""
        self._loaded = loaded
        padding = Padding(loaded.signature)
        self._padding = padding if loaded.signature.joins else None
        policy = BatchPolicy(loaded.signature.max_batch_size or 1, self._max_queue, self._max_delay_us)
        self._batcher = Batcher(f"{self.name}/{self.version}", loaded.session, policy, padding, self.statistics.observe)
        self._state = State.READY

    def fail(self, reason: str) -> None:
        """Stay out of service, for a reason that clients and the log will see."""
        self._state, self._reason = State.FAILED, reason

    def drain(self) -> None:
        """Admit nothing more; what has been admitted is still answered."""
        if self._state in (State.READY, State.LOADING):
            self._state = State.DRAINING

    def retire(self) -> None:
        """End for good, and let go of the session; whoever still waits is told."""
        self.close()
        self._loaded = self._batcher = None
        self.fail("the model was unloaded")

    def close(self) -> None:
        """Let the batcher end; a run that has begun goes on."""
        if self._batcher:
            self._batcher.close()

    def join(self, timeout_s: float) -> bool:
        """Wait for the batcher of a closed model; whether it has ended."""
        return self._batcher is None or self._batcher.join(timeout_s)

    def check_ready(self) -> None:
        """Raise UnavailableError, with the reason, unless the model is ready."""
        if self.state is not State.READY:
            raise self._unavailable()

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Let one request in and count it until it is answered.

        Raises UnavailableError when the model is not ready or its queue is full, before the body is looked at.
        """
        self.check_ready()
        self._check_room()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def _check_room(self) -> None:
        if self._batcher:
            try:
                self._batcher.check_room()
            except UnavailableError:
                self.statistics.refuse(time.perf_counter_ns())
                raise

    async def infer(
        self, feeds: Feeds, outputs: list[str], timeout_s: float, gone: Gone | None = None, wish: Wish = "auto"
    ) -> Answer:
        """The named outputs for checked inputs, within `timeout_s` seconds (0 is no limit), in the precision wished for.

        Raises UnavailableError when the queue is full, DeadlineError when time runs out, InferenceError, with the
        runtime's own error behind it, when the run fails, and what `gone` raises when the caller leaves.
        """
        if self._batcher is None:
            raise self._unavailable()
        job = self._job(feeds, outputs, timeout_s)
        try:
            self._batcher.submit(job)
            with patience(job, timeout_s, gone):
                values = await job.future
                return Answer(values, self.precision, job.queue_ns, job.compute_ns)
        except BaseException:  # a cancelled task too
            self.statistics.refuse(job.arrived_ns)
            raise

    def _job(self, feeds: Feeds, outputs: list[str], timeout_s: float) -> Job:
        deadline_s = time.monotonic() + timeout_s if timeout_s else None
        if self._padding is None:
            return Job(feeds, outputs, deadline_s=deadline_s)
        rows = next(iter(feeds.values())).shape[0]
        return Job(feeds, outputs, rows, self._padding.key(feeds), self._padding.length(feeds), deadline_s)

    @property
    def _ended(self) -> str:
        return self._batcher.ended if self._batcher else ""

    def _unavailable(self) -> UnavailableError:
        waiting_helps = self.state in (State.LOADING, State.DRAINING)
        text = f"model `{self.name}` version {self.version} is not ready: {self.reason}"
        return UnavailableError(text, retry_after_s=1 if waiting_helps else None)
