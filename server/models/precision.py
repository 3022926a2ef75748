"""Precision policy of one model: selects half or FP32 for each request, guards half answers, and samples for the shadow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from demi.server.accuracy.guard import Guard
from demi.server.accuracy.guarded_inputs import save_inputs
from demi.server.accuracy.monitor import AccuracyMonitor
from demi.server.accuracy.shadow import SampledRequest, Shadow
from demi.server.errors import NonFiniteError, RequestError, UnavailableError
from demi.server.models.backend import Backend, Limits
from demi.server.models.loading import Loaded
from demi.server.models.reference import Reference
from demi.server.protocol.answer import Answer, RequestedPrecision
from demi.server.scheduling.activity import activity_of
from demi.server.scheduling.batch import BatchRun
from demi.server.scheduling.deadlines import Gone
from demi.server.scheduling.inspection import Bounds, Inspection, is_finite, same_non_finite
from demi.server.settings import ServeSettings
from demi.tensors import Feeds

SHADOW_TIMEOUT_S = 120.0
"""Time limit of a sampled request in the other precision, in seconds."""

log = logging.getLogger("demi.server")

Observe = Callable[[BatchRun], None]
Refuse = Callable[[int], None]


class PrecisionPolicy:
    """Answers requests in half precision or in FP32. Owns both backends; used on the event loop's thread only.

    A half answer that half precision alone made NaN or infinite is computed again in FP32 (the guard). Answered
    requests are offered to the shadow, which feeds the accuracy monitor; the monitor can move traffic to FP32.
    """

    def __init__(
        self, name: str, backend: Backend, reference: Reference | None, monitor: AccuracyMonitor, refuse: Refuse
    ) -> None:
        self.backend = backend
        self.monitor = monitor
        self.shadow: Shadow | None = None
        """Sampler of requests; None without a reference to compare with."""
        self._name = name
        self._reference = reference
        self._refuse = refuse

    async def infer(
        self,
        feeds: Feeds,
        outputs: list[str],
        timeout_s: float,
        gone: Gone | None = None,
        wish: RequestedPrecision = "auto",
        request_id: str = "",
    ) -> Answer:
        """Return the named outputs, in the requested precision. Raises as `Model.infer` does."""
        stop = time.monotonic() + timeout_s if timeout_s else None
        is_plain = wish == "auto" and not self.monitor.moves_request()
        backend = self.backend if is_plain else await self._choose(wish)
        answer = await backend.infer(feeds, outputs, timeout_s, gone, refused=self._refuse)
        self.monitor.count_answer(answer)
        if answer.not_finite and wish != "half":
            answer = await self._rerun_in_fp32(feeds, outputs, stop, gone, answer, request_id)
        if self.shadow:
            self.shadow.offer(request_id, feeds, answer)
        return answer

    async def infer_other(self, sampled: SampledRequest) -> Answer:
        """Run a sampled request in the precision that it was not answered in."""
        if self._reference is None:
            raise UnavailableError(f"{self._name} has no FP32 reference to compare with", retry_after_s=None)
        other = self.backend if sampled.answer.precision == "fp32" else await self._reference.backend()
        return await other.infer(sampled.feeds, list(sampled.answer.outputs), SHADOW_TIMEOUT_S, counted=False)

    def close(self) -> None:
        """Stop sampling and close the backends; a run in progress completes."""
        if self.shadow:
            self.shadow.close()
        self.backend.close()
        if self._reference:
            self._reference.close()

    def join(self, timeout_s: float) -> bool:
        """Wait for the closed backends, each at most `timeout_s` seconds. Return whether all have ended."""
        return self.backend.join(timeout_s) and (self._reference is None or self._reference.join(timeout_s))

    async def _choose(self, wish: RequestedPrecision) -> Backend:
        """Return the backend for a request that asks for a precision, or whose traffic has moved to FP32."""
        if self.backend.precision == "fp32":
            if wish == "half":
                raise RequestError(
                    "this model is served in fp32 here and cannot answer in half",
                    hint="ask for auto or fp32, or start the server with --precision half",
                )
            return self.backend
        if wish == "half":
            return self.backend
        if self._reference is None:
            raise RequestError(
                "this model's bundle holds no FP32 reference to answer in fp32",
                hint="ask for auto or half, or export the model without --no-reference",
            )
        return await self._reference.backend()

    async def _rerun_in_fp32(
        self, feeds: Feeds, outputs: list[str], stop: float | None, gone: Gone | None, half: Answer, request_id: str
    ) -> Answer:
        """Return the FP32 answer in place of a non-finite half answer, or the half answer if FP32's is not finite either."""
        if self._reference is None:
            if not all(is_finite(values) for values in feeds.values()):
                return half  # the inputs are already non-finite, so FP32 could not help
            self._record(request_id, feeds, half, repaired=False)
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
        self._record(request_id, feeds, half, repaired=True)
        self.monitor.count_answer(fp32)
        log.warning(
            "%s: FP32 answered a request after NaN or infinite values in %s output %s",
            self._name,
            half.precision,
            _listed(half),
        )
        return fp32

    def _record(self, request_id: str, feeds: Feeds, half: Answer, *, repaired: bool) -> None:
        guard = self.monitor.guard
        made = guard.record(request_id, feeds, half.not_finite, repaired=repaired)
        if guard.folder:
            asyncio.get_running_loop().run_in_executor(None, save_inputs, guard.folder, made.fingerprint, feeds)


def make_policy(
    model: str, version: str, loaded: Loaded, settings: ServeSettings, observe: Observe, refuse: Refuse
) -> PrecisionPolicy:
    """Return the policy of a loaded model, with its backends, monitor, guard and shadow.

    The FP32 reference is loaded now if the model's requests are sampled, else on first use. `observe` takes every run
    for the statistics, and `refuse` the arrival time (`time.perf_counter_ns`) of every request without an answer.
    """
    name, signature = f"{model}/{version}", loaded.signature
    limits = Limits(settings.max_queue, settings.max_queue_delay_us, settings.stop_run_s)
    inspection = _inspection(loaded, guarded=settings.guard)
    backend = Backend(name, loaded.precision, loaded.sessions, signature, limits, inspection, observe)
    reference = None
    if loaded.open_reference:
        reference = Reference(
            name,
            loaded.open_reference,
            lambda session: Backend(f"{name} fp32", "fp32", [session], signature, limits, None, observe),
        )
    guard = Guard(Path(settings.keep_guarded) if settings.keep_guarded else None)
    monitor = AccuracyMonitor(
        name, loaded.budget, loaded.input_ranges, settings.on_drift, guard, alone=settings.decides_alone
    )
    policy = PrecisionPolicy(name, backend, reference, monitor, refuse)
    if reference:
        share = settings.shadow.of(model)
        if share:
            reference.load()
        policy.shadow = Shadow(
            share,
            signature,
            loaded.budget,
            activity_of(settings.device),
            policy.infer_other,
            monitor.add_sample,
            varying=loaded.varying,
        )
    return policy


def _inspection(loaded: Loaded, *, guarded: bool) -> Inspection:
    """Return what to inspect in a model's batches; nothing if it runs in FP32."""
    if loaded.precision == "fp32":
        return Inspection()
    bounds = {name: Bounds.around(*ends) for name, ends in loaded.input_ranges.items()}
    return Inspection(bounds, loaded.finite_outputs if guarded else ())


def _listed(answer: Answer) -> str:
    return ", ".join(f"`{name}`" for name in sorted(answer.not_finite))
