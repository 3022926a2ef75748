"""Lifecycle of one model version: load, admit requests, drain, retire."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from enum import Enum
from pathlib import Path
from typing import Any

from demi.server.accuracy.monitor import AccuracyMonitor
from demi.server.accuracy.shadow import Shadow
from demi.server.errors import UnavailableError
from demi.server.models.loading import Loaded
from demi.server.models.precision import PrecisionPolicy, make_policy
from demi.server.path_redaction import redact_paths
from demi.server.protocol.answer import Answer, RequestedPrecision
from demi.server.protocol.header_cache import HeaderCache
from demi.server.protocol.signature import Signature
from demi.server.scheduling.activity import Activity, activity_of
from demi.server.scheduling.deadlines import Gone
from demi.server.scheduling.statistics import Statistics
from demi.server.settings import ServeSettings
from demi.tensors import Feeds


class State(Enum):
    """Lifecycle state of a model, with the names of the repository index."""

    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "UNLOADING"
    FAILED = "UNAVAILABLE"


class Model:
    """A model version from loading to unloading. Owns its state and policy; used on the event loop's thread only.

    A request is admitted first, possibly before its body has arrived, and inferred afterwards. Admitted requests are
    answered even if the model starts draining in between.
    """

    def __init__(
        self, name: str, version: str, settings: ServeSettings | None = None, path: Path | None = None
    ) -> None:
        self.name = name
        self.version = version
        self.path = path
        self.in_flight = 0
        self.generations = 0
        """Texts that are being generated now."""
        self.encoder: Model | None = None
        """The encoder of a generator that has one, with statistics of its own; it lives as long as this model."""
        self.statistics = Statistics()
        self.headers = HeaderCache()
        """Headers of its HTTP requests that have been parsed before."""
        self._settings = settings or ServeSettings()
        self._state = State.LOADING
        self._reason = ""
        self._is_retired = False
        self._loaded: Loaded | None = None
        self._policy: PrecisionPolicy | None = None
        self._activity: Activity = activity_of(self._settings.device)

    @property
    def state(self) -> State:
        """Current state; FAILED if the batcher has ended or a run is stalled."""
        if self._state is State.READY and self._policy and self._policy.backend.batcher.trouble:
            return State.FAILED
        return self._state

    @property
    def reason(self) -> str:
        """The reason that the model is not ready, without paths of the server; empty if it is ready."""
        return redact_paths(self._full_reason, self.path)

    @property
    def _full_reason(self) -> str:
        if self._reason or self.state is State.READY:
            return self._reason
        return {State.LOADING: "the model is loading", State.DRAINING: "the model is shutting down"}.get(
            self.state, self._ended or self.stalled
        )

    @property
    def stalled(self) -> str:
        """The reason that no request is answered for now: an abandoned run goes on, or runs had to be stopped repeatedly;
        empty if requests are answered."""
        return self._policy.backend.batcher.stalled if self._policy else ""

    @property
    def in_service(self) -> bool:
        """Return whether server readiness depends on this model; False if loading failed, and from unloading on."""
        return self._state in (State.LOADING, State.READY)

    @property
    def failed_to_load(self) -> bool:
        """Return whether the bundle could not be loaded; False for a model that was unloaded on purpose."""
        return self._state is State.FAILED and not self._is_retired

    @property
    def loaded(self) -> Loaded:
        """The loaded bundle; UnavailableError before it is loaded."""
        if self._loaded is None:
            raise self._unavailable()
        return self._loaded

    @property
    def signature(self) -> Signature:
        """Inputs and outputs; UnavailableError before it is loaded."""
        return (self._loaded or self.loaded).signature

    @property
    def precision(self) -> str:
        """Precision that the model runs in; empty before it is loaded."""
        return self._loaded.precision if self._loaded else ""

    @property
    def note(self) -> str:
        """The reason that the model is not served as exported, without paths of the server; empty if it is."""
        return redact_paths(self._loaded.note, self.path) if self._loaded else ""

    @property
    def monitor(self) -> AccuracyMonitor:
        """Accuracy monitor; UnavailableError before it is loaded."""
        return self._ready_policy().monitor

    @property
    def shadow(self) -> Shadow | None:
        """Sampler of requests; None without a reference to compare with."""
        return self._policy.shadow if self._policy else None

    @property
    def queue_length(self) -> int:
        """Number of requests waiting for a run."""
        return self._policy.backend.batcher.queue_length if self._policy else 0

    def start(self, loaded: Loaded) -> None:
        """Make the loaded bundle ready to serve."""
        self._loaded = loaded
        statistics = self.statistics
        statistics.device_busy_ns |= {str(session.device): 0 for session in loaded.sessions}
        self._policy = make_policy(
            self.name, self.version, loaded, self._settings, statistics.observe, statistics.refuse
        )
        if loaded.encoder is not None:
            self.encoder = Model(f"{self.name}.encoder", self.version, self._settings, self.path)
            self.encoder.start(loaded.encoder)
        self._state = State.READY

    def fail(self, reason: str) -> None:
        """Take the model out of service. `reason` is shown to clients and in the log."""
        self._state, self._reason = State.FAILED, reason

    def drain(self) -> None:
        """Admit no more requests; admitted ones are still answered."""
        if self._state in (State.READY, State.LOADING):
            self._state = State.DRAINING

    def retire(self) -> None:
        """Unload the model and release its sessions; requests still waiting fail with UnavailableError."""
        self.close()
        self._loaded = self._policy = self.encoder = None
        self._is_retired = True
        self.fail("the model was unloaded")

    def close(self) -> None:
        """Close the batchers; a run in progress completes."""
        if self._policy:
            self._policy.close()
        if self.encoder:
            self.encoder.close()

    def join(self, timeout_s: float) -> bool:
        """Wait for the batchers of a closed model, each at most `timeout_s` seconds. Return whether all have ended."""
        ended = self._policy is None or self._policy.join(timeout_s)
        return (self.encoder is None or self.encoder.join(timeout_s)) and ended

    def check_ready(self) -> None:
        """Raise UnavailableError, with the reason, unless the model is ready."""
        if self.state is not State.READY:
            raise self._unavailable()

    def admitted(self) -> Admission:
        """Return a context manager that admits one request and counts it as in flight until the block ends.

        Entering it raises UnavailableError if the model is not ready or its queue is full.
        """
        return Admission(self)

    def admit(self) -> None:
        """Admit one request. Raise UnavailableError if the model is not ready or its queue is full."""
        if self._state is not State.READY or self._policy is None or self._policy.backend.batcher.trouble:
            raise self._unavailable()
        try:
            self._policy.backend.batcher.check_room()
        except UnavailableError:
            self.statistics.refuse(time.perf_counter_ns())
            raise
        self.in_flight += 1
        self._activity.begin()

    def dismiss(self) -> None:
        """Count an admitted request as answered."""
        self._activity.end()
        self.in_flight -= 1

    def infer(
        self,
        feeds: Feeds,
        outputs: list[str],
        timeout_s: float,
        gone: Gone | None = None,
        wish: RequestedPrecision = "auto",
        request_id: str = "",
    ) -> Coroutine[Any, Any, Answer]:
        """Return a coroutine of the named outputs for checked inputs, in the requested precision.

        `timeout_s` is the deadline in seconds (0 sets none), and `gone` waits for the client to disconnect. With the
        guard on, an answer that half precision alone made NaN or infinite is computed again in FP32.

        Raises UnavailableError if the queue is full, DeadlineError at the deadline, InferenceError (caused by the
        runtime's own error) if the run fails, NonFiniteError if the guard has no FP32 model, RequestError for a
        precision that the bundle does not have, and the exception of `gone` if the client disconnects.
        """
        return self._ready_policy().infer(feeds, outputs, timeout_s, gone, wish, request_id)

    def _ready_policy(self) -> PrecisionPolicy:
        if self._policy is None:
            raise self._unavailable()
        return self._policy

    @property
    def _ended(self) -> str:
        return self._policy.backend.batcher.ended if self._policy else ""

    def _unavailable(self) -> UnavailableError:
        waiting_helps = self.state in (State.LOADING, State.DRAINING) or not (self._reason or self._ended)
        text = f"model `{self.name}` version {self.version} is not ready: {self.reason}"
        return UnavailableError(text, retry_after_s=1 if waiting_helps else None, ends=self.state is State.DRAINING)


class Admission:
    """Context manager that admits one request; a class, because `contextlib.contextmanager` costs more than it does."""

    __slots__ = ("_model",)

    def __init__(self, model: Model) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.admit()

    def __exit__(self, *_: object) -> None:
        self._model.dismiss()
