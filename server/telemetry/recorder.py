"""Recorder of every model's history: one reading a minute, and one every two seconds while somebody watches.

With many busy models, those that nobody looks at are read in turn, so that the time for a reading stays bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

from demi.server.clock import now_ms
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.telemetry.history import MAX_OUTPUTS, Activity, Reading, Track, between, read_model

TICK_S = 2.0
"""Seconds between readings while somebody watches."""

MINUTE_S = 60.0
"""Seconds between readings at any time."""

MINUTES = 450
"""Points of the last minutes: 15 minutes of one every `TICK_S`."""

HOURS = 360
"""Points of the last hours: 6 hours of one every `MINUTE_S`."""

RECENT = 16
"""Readings that a model's current numbers rest on: the last 30 seconds."""

RECENT_S = (RECENT - 1) * TICK_S
"""Seconds that a model's current numbers cover, if it is read often enough."""

AT_ONCE = 100
"""Busy models that are read at each tick; of more, each is read every second or third tick, and so on."""

Span = Literal["minutes", "hours"]


@dataclass(slots=True)
class History:
    """Record of one model version."""

    outputs: int
    minutes: Track = field(init=False)
    hours: Track = field(init=False)
    recent: deque[Reading] = field(default_factory=lambda: deque(maxlen=RECENT))

    def __post_init__(self) -> None:
        self.minutes = Track(TICK_S, MINUTES, self.outputs)
        self.hours = Track(MINUTE_S, HOURS, self.outputs)

    def add(self, span: Span, reading: Reading, before: float | None, when_ms: float, turns: int = 1) -> None:
        """Add a reading; `before` is the time of the one before it, at which an unknown model had no request yet.

        `turns` is the number of ticks from one reading to the next.
        """
        track = self.minutes if span == "minutes" else self.hours
        if before is not None and not track.has_begun:
            self._add(span, track, reading.before_any(before), when_ms, turns)
        self._add(span, track, reading, when_ms, turns)

    def _add(self, span: Span, track: Track, reading: Reading, when_ms: float, turns: int) -> None:
        track.add(reading, when_ms, turns)
        if span == "hours":
            return
        if self.recent and track.is_pause(self.recent[-1], reading, turns):
            self.recent.clear()
        self.recent.append(reading)
        while len(self.recent) > 2 and self.recent[1].seconds <= reading.seconds - RECENT_S:
            self.recent.popleft()

    @property
    def activity(self) -> Activity | None:
        """Activity over the last `RECENT_S` seconds, at least between two readings; None before the second one."""
        return between(self.recent[0], self.recent[-1]) if len(self.recent) > 1 else None


class Recorder:
    """Histories of all models of a repository. Owns its timers; used on the event loop's thread only.

    A model that never received a request is not read, and takes no memory.
    """

    def __init__(self, repository: Repository, clock: Callable[[], float] = time.monotonic) -> None:
        self._repository = repository
        self._clock = clock
        self._histories: WeakKeyDictionary[Model, History] = WeakKeyDictionary()
        self._watchers = 0
        self._followed: Counter[tuple[str, str]] = Counter()
        self._tick = 0
        self._ticked = asyncio.Event()
        self._timers: dict[Span, asyncio.TimerHandle] = {}
        self._read_at: dict[Span, float] = {}

    @property
    def watchers(self) -> int:
        """Number of pages that watch."""
        return self._watchers

    def start(self) -> None:
        """Take a reading now and every minute from now on."""
        self._every(MINUTE_S, "hours", self._add_hours)

    def stop(self) -> None:
        """Take no more readings, and wake those who wait for the next one."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._wake()

    @contextlib.contextmanager
    def watching(self, name: str = "", version: str = "") -> Iterator[None]:
        """Take a reading every `TICK_S` while at least one of these blocks is open; each of the named model version."""
        self._watchers += 1
        self._followed[name, version] += 1
        if "hours" not in self._timers:
            self.start()  # nobody else does, where another program runs the application
        if self._watchers == 1:
            self._every(TICK_S, "minutes", self._add_minutes)
        try:
            yield
        finally:
            self._watchers -= 1
            self._followed -= Counter([(name, version)])
            if not self._watchers and (timer := self._timers.pop("minutes", None)):
                timer.cancel()

    async def next_reading(self) -> None:
        """Wait until the next reading has been taken, or recording stops."""
        await self._ticked.wait()

    def activity(self, model: Model) -> Activity | None:
        """Return a model's activity in the last 30 seconds; None if it is not known yet."""
        history = self._histories.get(model)
        return history.activity if history else None

    def points(self, model: Model, span: Span, since_ms: float) -> tuple[list[float], list[list[float]]]:
        """Return the points of a model after `since_ms`: their times, and one list for each column (`Track.since`)."""
        history = self._histories.get(model)
        if history is None:
            return [], []
        return (history.minutes if span == "minutes" else history.hours).since(since_ms)

    def read_at(self, model: Model) -> float | None:
        """Return when a model was last read for the last minutes, in seconds of the clock; None if it never was."""
        history = self._histories.get(model)
        return history.recent[-1].seconds if history and history.recent else None

    def read(self, span: Span) -> None:
        """Take one reading of every model that has received a request; of many, for the last minutes, of those whose turn it is."""
        seconds, when_ms = self._clock(), now_ms()
        before = self._read_at.get(span)
        self._read_at[span] = seconds
        busy = [model for model in self._repository if model.statistics.success.count or model.statistics.fail.count]
        turns = max(math.ceil(len(busy) / AT_ONCE), 1) if span == "minutes" else 1
        self._tick += 1
        for place, model in enumerate(busy):
            if (place + self._tick) % turns == 0 or self._is_urgent(model):
                reading = read_model(model, seconds)
                self._history(model, len(reading.errors)).add(span, reading, before, when_ms, turns)

    def _is_urgent(self, model: Model) -> bool:
        """Return whether a model is read at every tick: its page is open, or it was never read."""
        return (model.name, model.version) in self._followed or self.read_at(model) is None

    def _history(self, model: Model, outputs: int) -> History:
        history = self._histories.get(model)
        if history is None:
            history = self._histories[model] = History(outputs or MAX_OUTPUTS)
        return history

    def _add_hours(self) -> None:
        self.read("hours")

    def _add_minutes(self) -> None:
        self.read("minutes")
        self._wake()

    def _wake(self) -> None:
        ticked, self._ticked = self._ticked, asyncio.Event()
        ticked.set()

    def _every(self, interval_s: float, span: Span, work: Callable[[], None]) -> None:
        self._timers[span] = asyncio.get_running_loop().call_later(interval_s, self._every, interval_s, span, work)
        work()
