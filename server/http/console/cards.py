"""Cards of the models page: everything that a person sees of one model version at a glance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from demi.server.accuracy.window import WindowAccuracy
from demi.server.http.console.gauges import Gauge, gauges
from demi.server.models.computed import vouches_for
from demi.server.models.model import Model, State
from demi.server.telemetry.history import Activity

REASSESS_SHARE = 50
"""The window is assessed again after new samples worth 1/50 of it: each assessment walks the whole window."""


@dataclass(frozen=True, slots=True)
class CardAccuracy:
    """Live accuracy of a model version in half precision against FP32."""

    state: str
    """`within`, `over`, `unknown`, `off` (no request is sampled), or `none` (nothing to compare with)."""
    samples: int = 0
    share: float = 0.0
    """Share of requests that are sampled."""
    worst: Gauge | None = None
    """The limit of the budget that is used most."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Traffic of a model version: its percentage of the requests that name no version, and its aliases."""

    percent: float = 100.0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """One model version. Rates and percentiles cover the last 30 seconds; None stands for unknown."""

    name: str
    version: str
    state: str
    """`ready`, `degraded`, `loading`, `unloading`, `unloaded` or `failed`."""
    traffic: Traffic
    reason: str = ""
    precision: str = ""
    device: str = ""
    runtime: str = ""
    batching: str = ""
    note: str = ""
    requests: int = 0
    failures: int = 0
    """Requests answered and failed since the model was loaded."""
    rate: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    batch: float | None = None
    failed_share: float | None = None
    queue: int = 0
    accuracy: CardAccuracy = field(default_factory=lambda: CardAccuracy("none"))
    vouches_for: str = ""
    """Conclusion of the comparison with FP32 here, with what it cannot show."""
    serving: str = ""
    """Precision that requests are answered in now: FP32 while drift moves traffic."""
    guarded: int = 0
    unrepaired: int = 0
    outside: int = 0


class Cards:
    """Makes cards. Owns the last assessment of each model's window; used on the event loop's thread only."""

    def __init__(self) -> None:
        self._assessed: WeakKeyDictionary[Model, tuple[int, WindowAccuracy]] = WeakKeyDictionary()

    def card(self, model: Model, activity: Activity | None, traffic: Traffic | None = None) -> Card:
        """Return the card of a model version."""
        traffic = traffic or Traffic()
        if model.state is not State.READY:
            return Card(model.name, model.version, state_of(model), traffic, model.reason)
        monitor, loaded, statistics = model.monitor, model.loaded, model.statistics
        return Card(
            name=model.name,
            version=model.version,
            state=state_of(model),
            traffic=traffic,
            precision=loaded.precision,
            device=", ".join(dict.fromkeys(str(session.device) for session in loaded.sessions)),
            runtime=loaded.runtime,
            batching=model.signature.batching,
            note=model.note,
            requests=statistics.success.count,
            failures=statistics.fail.count,
            rate=_number(activity.rate) if activity else None,
            p50_ms=_number(activity.p50_ms) if activity else None,
            p99_ms=_number(activity.p99_ms) if activity else None,
            batch=_number(activity.batch) if activity else None,
            failed_share=_number(activity.failures) if activity else None,
            queue=model.queue_length,
            accuracy=self._accuracy(model),
            vouches_for=vouches_for(loaded.precision, loaded.session.device.kind, loaded.runtime),
            serving="fp32" if monitor.moves_traffic else loaded.precision,
            guarded=monitor.guard.reruns,
            unrepaired=monitor.guard.unrepaired,
            outside=sum(monitor.outside.values()),
        )

    def assess(self, model: Model, samples: int) -> WindowAccuracy:
        """Return the assessment of a model's window, made again if `samples`, the count of all samples, has grown enough."""
        window = model.monitor.window
        known = self._assessed.get(model)
        if known is None or samples - known[0] > len(window.samples) // REASSESS_SHARE:
            known = self._assessed[model] = samples, window.assess()
        return known[1]

    def _accuracy(self, model: Model) -> CardAccuracy:
        shadow = model.shadow
        if shadow is None:
            return CardAccuracy("none")
        found = self.assess(model, shadow.samples)
        state: str = "over" if model.monitor.over else found.state
        if state == "unknown" and not found.samples and not shadow.share:
            state = "off"
        worst = [each[0] for each in map(gauges, found.outputs) if each]
        return CardAccuracy(
            state, found.samples, shadow.share, max(worst, key=lambda gauge: gauge.use) if worst else None
        )


def state_of(model: Model) -> str:
    """Return the state of a model version, as its card shows it."""
    if model.state is State.READY:
        return "degraded" if model.monitor.degraded else "ready"
    if model.state is State.FAILED:
        return "failed" if model.failed_to_load or model.stalled else "unloaded"
    return {State.LOADING: "loading", State.DRAINING: "unloading"}[model.state]


def _number(value: float) -> float | None:
    """Return a number with three digits, so that a card changes only when a reader would see it; None for NaN."""
    return None if math.isnan(value) else float(f"{value:.3g}")
