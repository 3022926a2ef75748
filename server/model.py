"""One model version: its state, and the way from checked inputs to outputs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from enum import Enum

from demi.errors import InferenceError
from demi.tensors import Feeds
from server.errors import DeadlineError, UnavailableError
from server.loading import Loaded
from server.signature import Signature
from server.worker import Job, Worker


class State(Enum):
    """Where a model is in its life, by the names of the repository index."""

    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "UNLOADING"
    FAILED = "UNAVAILABLE"


class Model:
    """A model version from loading to the end. Owns its worker and its state; lives on the event loop's thread.

    A request is admitted first, while its body may still be on its way, and then inferred: what has been admitted is
    answered, also when the model starts draining in between.
    """

    def __init__(self, name: str, version: str, *, max_queue: int) -> None:
        self.name = name
        self.version = version
        self.in_flight = 0
        self._max_queue = max_queue
        self._state = State.LOADING
        self._reason = ""
        self._loaded: Loaded | None = None
        self._worker: Worker | None = None

    @property
    def state(self) -> State:
        """Its state now; a model whose worker has died is FAILED."""
        if self._state is State.READY and not (self._worker and self._worker.alive):
            return State.FAILED
        return self._state

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        if self._reason or self.state is State.READY:
            return self._reason
        return {State.LOADING: "the model is loading", State.DRAINING: "the model is shutting down"}.get(
            self.state, "the model's worker has ended"
        )

    @property
    def never_loaded(self) -> bool:
        """Whether it failed before it could serve at all: then the server's readiness does not wait for it."""
        return self._state is State.FAILED and self._loaded is None

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

    def start(self, loaded: Loaded) -> None:
        """Become ready to serve what was loaded."""
        self._loaded = loaded
        self._worker = Worker(f"{self.name}/{self.version}", loaded.session, self._max_queue)
        self._state = State.READY

    def fail(self, reason: str) -> None:
        """Stay out of service, for a reason that clients and the log will see."""
        self._state, self._reason = State.FAILED, reason

    def drain(self) -> None:
        """Admit nothing more; what has been admitted is still answered."""
        if self._state in (State.READY, State.LOADING):
            self._state = State.DRAINING

    def close(self) -> None:
        """Let the worker end; a run that has begun goes on."""
        if self._worker:
            self._worker.close()

    def join(self, timeout_s: float) -> bool:
        """Wait for the worker of a closed model; whether it has ended."""
        return self._worker is None or self._worker.join(timeout_s)

    def check_ready(self) -> None:
        """Raise UnavailableError, with the reason, unless the model is ready."""
        if self.state is not State.READY:
            raise self._unavailable()

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Let one request in and count it until it is answered; UnavailableError when the model is not ready."""
        self.check_ready()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def infer(self, feeds: Feeds, outputs: list[str], timeout_s: float) -> Feeds:
        """The named outputs for checked inputs, within `timeout_s` seconds (0 is no limit).

        Raises UnavailableError when the queue is full, DeadlineError when time runs out, and InferenceError, with the
        runtime's own error behind it, when the run fails.
        """
        if self._worker is None:
            raise self._unavailable()
        job = Job(feeds, outputs)
        self._worker.submit(job)
        try:
            async with asyncio.timeout(timeout_s or None) as limit:
                return await job.future
        except TimeoutError as error:
            if not limit.expired():
                raise InferenceError(f"the session failed: {error}") from error
            raise DeadlineError(f"no answer within {timeout_s:g} s", hint="raise the `timeout` parameter") from error

    def _unavailable(self) -> UnavailableError:
        waiting_helps = self.state in (State.LOADING, State.DRAINING)
        text = f"model `{self.name}` version {self.version} is not ready: {self.reason}"
        return UnavailableError(text, retry_after_s=1 if waiting_helps else None)
