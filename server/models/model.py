"""One model version: its state, and the way from checked inputs to outputs."""

from __future__ import annotations

import asyncio
import logging
import time
from enum import Enum
from pathlib import Path

from demi.server.accuracy.guard import Guard, same_non_finite
from demi.server.accuracy.monitor import Watch
from demi.server.accuracy.shadow import Sample, Shadow
from demi.server.errors import NonFiniteError, RequestError, UnavailableError
from demi.server.models.backend import Backend, Limits
from demi.server.models.loading import Loaded
from demi.server.models.reference import Reference
from demi.server.path_redaction import redact_paths
from demi.server.protocol.answer import Answer, RequestedPrecision
from demi.server.protocol.signature import Signature
from demi.server.scheduling.activity import Activity, activity_of
from demi.server.scheduling.deadlines import Gone
from demi.server.scheduling.inspection import Bounds, Inspection, is_finite
from demi.server.scheduling.statistics import Statistics
from demi.server.settings import ServeSettings
from demi.tensors import Feeds

SHADOW_TIMEOUT_S = 120.0
"""How long a sampled request may take in the other precision."""


log = logging.getLogger("demi.server")


class State(Enum):
    """Where a model is in its life, by the names of the repository index."""

    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "UNLOADING"
    FAILED = "UNAVAILABLE"


class Model:
    """A model version from loading to the end. Owns its backends and its state; lives on the event loop's thread.

    A request is admitted first, while its body may still be on its way, and then inferred: what has been admitted is
    answered, also when the model starts draining in between.
    """

    def __init__(
        self, name: str, version: str, settings: ServeSettings | None = None, path: Path | None = None
    ) -> None:
        self.name = name
        self.version = version
        self.path = path
        self.in_flight = 0
        self.statistics = Statistics()
        self._settings = settings or ServeSettings()
        self._state = State.LOADING
        self._reason = ""
        self._loaded: Loaded | None = None
        self._backend: Backend | None = None
        self._reference: Reference | None = None
        self._watch: Watch | None = None
        self._shadow: Shadow | None = None
        self._activity: Activity = activity_of(self._settings.device)

    @property
    def state(self) -> State:
        """Its state now; a model whose batcher has died, or is held up by a run without end, is FAILED."""
        if self._state is State.READY and (self._ended or self.held_up):
            return State.FAILED
        return self._state

    @property
    def reason(self) -> str:
        """Why it is not ready, for clients as well; empty when it is."""
        return redact_paths(self._why, self.path)

    @property
    def _why(self) -> str:
        if self._reason or self.state is State.READY:
            return self._reason
        return {State.LOADING: "the model is loading", State.DRAINING: "the model is shutting down"}.get(
            self.state, self._ended or self.held_up
        )

    @property
    def held_up(self) -> str:
        """Why it answers nobody for now: a run that nobody waits for goes on, or has been stopped again and again."""
        return self._backend.batcher.held_up if self._backend else ""

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
    def note(self) -> str:
        """Why it is not served as it was exported, for clients as well; empty where it is."""
        return redact_paths(self._loaded.note, self.path) if self._loaded else ""

    @property
    def watch(self) -> Watch:
        """Its accuracy while it serves; UnavailableError before it is loaded."""
        if self._watch is None:
            raise self._unavailable()
        return self._watch

    @property
    def shadow(self) -> Shadow | None:
        """What samples its requests; None where there is nothing to compare with."""
        return self._shadow

    @property
    def queue_length(self) -> int:
        """How many requests wait for their run."""
        return self._backend.batcher.queue_length if self._backend else 0

    def start(self, loaded: Loaded) -> None:
        """Become ready to serve what was loaded."""
        settings, signature = self._settings, loaded.signature
        limits = Limits(settings.max_queue, settings.max_queue_delay_us, settings.stop_run_s)
        name = f"{self.name}/{self.version}"
        self._loaded = loaded
        self._watch = Watch(name, loaded.budget, loaded.input_ranges, settings.on_drift)
        self._watch.guard = Guard(Path(settings.keep_guarded) if settings.keep_guarded else None)
        observe = self.statistics.observe
        self._backend = Backend(
            name, loaded.precision, loaded.sessions, signature, limits, self._inspection(loaded), observe
        )
        if loaded.open_reference:
            self._reference = Reference(
                name,
                loaded.open_reference,
                lambda session: Backend(f"{name} fp32", "fp32", [session], signature, limits, None, observe),
            )
            share = settings.shadow.of(self.name)
            if share:
                self._reference.load()
            self._shadow = Shadow(
                share,
                signature,
                loaded.budget,
                self._activity,
                self._infer_other,
                self._watch.add,
                varying=loaded.varying,
            )
        self._state = State.READY

    def fail(self, reason: str) -> None:
        """Stay out of service, for a reason that clients and the log will see."""
        self._state, self._reason = State.FAILED, reason

    def drain(self) -> None:
        """Admit nothing more; what has been admitted is still answered."""
        if self._state in (State.READY, State.LOADING):
            self._state = State.DRAINING

    def retire(self) -> None:
        """End for good, and let go of the sessions; whoever still waits is told."""
        self.close()
        self._loaded = self._backend = self._reference = self._shadow = None
        self.fail("the model was unloaded")

    def close(self) -> None:
        """Let the batchers end; a run that has begun goes on."""
        if self._shadow:
            self._shadow.close()
        for part in (self._backend, self._reference):
            if part:
                part.close()

    def join(self, timeout_s: float) -> bool:
        """Wait for the batchers of a closed model; whether they have ended."""
        parts = [part for part in (self._backend, self._reference) if part]
        return all(part.join(timeout_s) for part in parts)

    def check_ready(self) -> None:
        """Raise UnavailableError, with the reason, unless the model is ready."""
        if self.state is not State.READY:
            raise self._unavailable()

    def admitted(self) -> Admission:
        """Let one request in for the length of a block, and count it until it is answered.

        The block raises UnavailableError when the model is not ready or its queue is full, before it begins.
        """
        return Admission(self)

    def admit(self) -> None:
        """One more request; UnavailableError when the model is not ready or its queue is full."""
        self.check_ready()
        self._check_room()
        self.in_flight += 1
        self._activity.begin()

    def dismiss(self) -> None:
        """A request that was admitted is answered."""
        self._activity.end()
        self.in_flight -= 1

    def _check_room(self) -> None:
        if self._backend:
            try:
                self._backend.batcher.check_room()
            except UnavailableError:
                self.statistics.refuse(time.perf_counter_ns())
                raise

    async def infer(
        self,
        feeds: Feeds,
        outputs: list[str],
        timeout_s: float,
        gone: Gone | None = None,
        wish: RequestedPrecision = "auto",
        request_id: str = "",
    ) -> Answer:
        """The named outputs for checked inputs, within `timeout_s` seconds (0 is no limit), in the precision wished for.

        With the guard on, an answer that half precision alone made NaN or infinite is computed again in FP32. Raises
        UnavailableError when the queue is full, DeadlineError when time runs out, InferenceError, with the runtime's
        own error behind it, when the run fails, NonFiniteError when the guard has no FP32 model, RequestError for a
        wish that the bundle cannot meet, and what `gone` raises when the caller leaves.
        """
        if self._backend is None:
            raise self._unavailable()
        stop = time.monotonic() + timeout_s if timeout_s else None
        is_plain = wish == "auto" and not self.watch.moves_traffic
        backend = self._backend if is_plain else await self._choose(wish, self._backend)
        answer = await backend.infer(feeds, outputs, timeout_s, gone, refused=self.statistics.refuse)
        self.watch.note(answer)
        if answer.not_finite and wish != "half":
            answer = await self._guarded(feeds, outputs, stop, gone, answer, request_id)
        if self._shadow:
            self._shadow.offer(request_id, feeds, answer)
        return answer

    async def _choose(self, wish: RequestedPrecision, half: Backend) -> Backend:
        """The backend for a request: FP32 where it asks for that, or where traffic has moved."""
        if half.precision == "fp32" and wish == "half":
            raise RequestError(
                "this model is served in fp32 here, and cannot answer in half",
                hint="ask for auto or fp32, or start the server with --precision half",
            )
        if half.precision == "fp32" or not (wish == "fp32" or (wish == "auto" and self.watch.moves_traffic)):
            return half
        if self._reference is None:
            raise RequestError(
                "this model's bundle holds no FP32 reference to answer in fp32",
                hint="ask for auto or half, or export the model without --no-reference",
            )
        return await self._reference.backend()

    async def _guarded(
        self, feeds: Feeds, outputs: list[str], stop: float | None, gone: Gone | None, half: Answer, request_id: str
    ) -> Answer:
        """The FP32 answer in place of a half one that is not finite; the half one where FP32 is no better."""
        guard = self.watch.guard
        if self._reference is None:
            if not all(is_finite(values) for values in feeds.values()):
                return half  # as the inputs are: what FP32 would make of them is no news
            self._keep(guard, request_id, feeds, half, repaired=False)
            raise NonFiniteError(
                f"the {half.precision} answer holds NaN or infinite values in {_listed(half)}, and the bundle holds no "
                "FP32 reference to answer instead",
                hint="export the model without --no-reference, or serve it with --no-guard",
            )
        backend = await self._reference.backend()
        left_s = max(stop - time.monotonic(), 0.001) if stop else 0.0
        fp32 = await backend.infer(feeds, outputs, left_s, gone, counted=False)
        if same_non_finite(half.outputs, fp32.outputs, half.not_finite):
            return half
        self._keep(guard, request_id, feeds, half, repaired=True)
        self.watch.note(fp32)
        log.warning(
            "%s/%s: FP32 answered a request that %s made %s of: %s",
            self.name,
            self.version,
            half.precision,
            "NaN or infinite values",
            _listed(half),
        )
        return fp32

    def _keep(self, guard: Guard, request_id: str, feeds: Feeds, half: Answer, *, repaired: bool) -> None:
        guarded = guard.note(request_id, feeds, half.not_finite, repaired=repaired)
        if self._settings.keep_guarded:
            asyncio.get_running_loop().run_in_executor(None, guard.keep, guarded, feeds)

    async def _infer_other(self, sample: Sample) -> Answer:
        """A sampled request in the precision that it was not answered in."""
        if self._reference is None or self._backend is None:
            raise self._unavailable()
        other = self._backend if sample.answer.precision == "fp32" else await self._reference.backend()
        return await other.infer(sample.feeds, list(sample.answer.outputs), SHADOW_TIMEOUT_S, counted=False)

    def _inspection(self, loaded: Loaded) -> Inspection:
        """What to look at in a model's batches: nothing in one that runs in FP32."""
        if loaded.precision == "fp32":
            return Inspection()
        bounds = {name: Bounds.around(*ends) for name, ends in loaded.input_ranges.items()}
        return Inspection(bounds, loaded.finite_outputs if self._settings.guard else ())

    @property
    def _ended(self) -> str:
        return self._backend.batcher.ended if self._backend else ""

    def _unavailable(self) -> UnavailableError:
        waiting_helps = self.state in (State.LOADING, State.DRAINING) or not (self._reason or self._ended)
        text = f"model `{self.name}` version {self.version} is not ready: {self.reason}"
        return UnavailableError(text, retry_after_s=1 if waiting_helps else None, ends=self.state is State.DRAINING)


class Admission:
    """One request that a model has let in, for the length of a block; a generator would take longer than what it does."""

    __slots__ = ("_model",)

    def __init__(self, model: Model) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.admit()

    def __exit__(self, *_: object) -> None:
        self._model.dismiss()


def _listed(answer: Answer) -> str:
    return ", ".join(f"`{name}`" for name in sorted(answer.not_finite))
