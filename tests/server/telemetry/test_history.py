"""History of a model: points between readings, percentiles, and rings that stay bounded."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.settings import ServeSettings
from demi.server.telemetry import recorder as recorder_module
from demi.server.telemetry.history import COLUMNS, Reading, Track, between
from demi.server.telemetry.recorder import HOURS, MINUTE_S, MINUTES, RECENT, TICK_S, Recorder
from tests.server.fakes import loaded, open_fake

START = Reading(0.0, 0, 0, 0, 0, 0, 0, 0, 0, (0, 0, 0), (0.01, 0.1), ((0, 0.0),))
RATE, BATCH = COLUMNS.index("rate"), COLUMNS.index("batch")


class Clock:
    """Monotonic time that a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def model_with_requests(answered: int = 0, name: str = "m") -> Model:
    """Return a ready model that has answered so many requests."""
    model = Model(name, "1", ServeSettings())
    model.start(loaded(open_fake()))
    answer(model, answered)
    return model


def answer(model: Model, requests: int, seconds: float = 0.002) -> None:
    """Count requests as the batcher would: one row and one run each."""
    model.statistics.success.add(int(seconds * 1e9), requests)
    model.statistics.request_seconds.add(seconds, requests)
    model.statistics.inference_count += requests
    model.statistics.execution_count += requests


def test_a_point_is_the_difference_of_two_readings():
    """Rates per second or minute, shares of requests, and means of what happened in between."""
    now = Reading(2.0, 6, 2, 12, 3, 1, 2, 4, 5, (0, 6, 0), (0.01, 0.1), ((4, 0.02),))
    found = between(START, now)

    assert (3.0, 5, 4.0, 0.25) == (found.rate, found.queue, found.batch, found.failures)
    assert (30.0, 60.0, 120.0) == (found.guarded, found.outside, found.samples)
    assert (0.005,) == found.errors
    assert 10 < found.p50_ms < found.p99_ms <= 100


def test_averages_of_nothing_are_unknown():
    """Without a request there is no latency, no batch, no share of failures and no error."""
    found = between(START, replace(START, seconds=2.0))

    assert 0.0 == found.rate
    assert all(map(math.isnan, (found.p50_ms, found.p99_ms, found.batch, found.failures, *found.errors)))


@given(st.integers(0, 60))
def test_a_track_keeps_the_newest_points(count):
    """A track of 16 points holds the last 16, in order; a newer time returns only what follows it."""
    track = Track(1.0, 16, 0)
    for second in range(count + 1):
        track.add(replace(START, seconds=float(second), answered=second, errors=()), float(second))
    times, columns = track.since(-1.0)

    assert list(map(float, range(max(count - 15, 1), count + 1))) == times
    assert [1.0] * len(times) == columns[RATE]
    assert times[-3:] == track.since(count - 3.0)[0][-3:]


def test_a_pause_makes_no_point():
    """Two readings with a long pause between them would make one misleading average."""
    track = Track(1.0, 16, 0)
    for second in (0.0, 1.0, 60.0, 61.0):
        track.add(replace(START, seconds=second, errors=()), second)

    assert [1.0, 61.0] == track.since(0.0)[0]


def test_an_idle_model_is_not_recorded():
    """A model without requests has no history; its first request appears in the next point, not the one after."""
    clock = Clock()
    model = model_with_requests()
    recorder = Recorder(Repository([model]), clock)
    recorder.read("minutes")
    idle = recorder.points(model, "minutes", 0)
    answer(model, 4)
    clock.seconds += TICK_S
    recorder.read("minutes")
    _, columns = recorder.points(model, "minutes", 0)
    model.close()

    assert ([], []) == idle
    assert [4 / TICK_S] == columns[RATE]


def test_current_numbers_cover_thirty_seconds():
    """Requests older than the last readings no longer count."""
    clock, model = Clock(), model_with_requests(1)
    recorder = Recorder(Repository([model]), clock)
    for _ in range(RECENT):
        answer(model, 2, seconds=0.020)
        recorder.read("minutes")
        clock.seconds += TICK_S
    busy = recorder.activity(model)
    for _ in range(RECENT):
        recorder.read("minutes")
        clock.seconds += TICK_S
    idle = recorder.activity(model)
    model.close()

    assert busy is not None
    assert idle is not None
    assert (2 / TICK_S, 1.0, 0.0) == (busy.rate, busy.batch, idle.rate)
    assert 18 < busy.p50_ms < 23


def test_history_is_bounded():
    """A week of readings takes no more room than the last hours."""
    clock, model = Clock(), model_with_requests(1)
    recorder = Recorder(Repository([model]), clock)
    for _ in range(2 * HOURS):
        clock.seconds += MINUTE_S
        recorder.read("hours")
    for _ in range(2 * MINUTES):
        clock.seconds += TICK_S
        recorder.read("minutes")
    points = [len(recorder.points(model, span, 0)[0]) for span in ("hours", "minutes")]
    model.close()

    assert [HOURS, MINUTES] == points


@pytest.fixture
def four_at_once(monkeypatch):
    """Let four models be many."""
    monkeypatch.setattr(recorder_module, "AT_ONCE", 4)


def test_many_busy_models_are_read_in_turn(four_at_once):
    """Each tick reads as many as with fewer models; the one whose page is open is read every time, a new one at once."""
    models = [model_with_requests(1, f"m{number:02}") for number in range(16)]
    clock, repository = Clock(), Repository(models)
    recorder = Recorder(repository, clock)

    async def watch() -> list[int]:
        counts = []
        with recorder.watching(models[0].name, "1"):
            for _ in range(9):
                counts.append(sum(recorder.read_at(model) == clock.seconds for model in models))
                clock.seconds += TICK_S
                recorder.read("minutes")
        recorder.stop()
        return counts

    first, *others = asyncio.run(watch())
    followed, other = (recorder.points(model, "minutes", 0)[0] for model in models[:2])
    repository.close(5)

    assert (16, {4, 5}) == (first, set(others))
    assert (9, 3) == (len(followed), len(other))


def test_numbers_of_models_read_in_turn_cover_thirty_seconds(four_at_once):
    """Not the last sixteen readings, which would be of minutes."""
    models = [model_with_requests(1, f"m{number:02}") for number in range(16)]
    clock, repository = Clock(), Repository(models)
    recorder = Recorder(repository, clock)
    for tick in range(40):
        if tick < 20:
            answer(models[7], 10)
        clock.seconds += TICK_S
        recorder.read("minutes")
    found = recorder.activity(models[7])
    repository.close(5)

    assert found is not None
    assert 0.0 == found.rate
