"""An endless run is stopped without anyone waiting for it, and its model is not ready meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import orjson
import pytest

from demi.errors import StoppedError
from demi.runtime.onnxruntime.session import open_session
from demi.server.errors import DeadlineError, UnavailableError
from demi.server.http.answer import error_answer
from demi.server.models.model import Model, State
from demi.server.scheduling.batch import BatchRun
from demi.server.scheduling.job import Job
from demi.server.scheduling.stalled_runs import MAX_ON_EVENT_LOOP_NS, Action, action_for
from demi.server.settings import ServeSettings
from tests.hostile.wire import exchange, request
from tests.server.bundles import serialized, write_bundle
from tests.server.fakes import DoublingSession, loaded, until
from tests.server.processes import serving

LOOP = """loop (int64 turns, float[batch, 1] x) => (float[batch, 1] y)
{ always = Constant<value = bool {1}>()
  y = Loop(turns, always, x) <body = body (int64 turn, bool going, float[n, 1] before)
    => (bool still, float[n, 1] after)
    { still = Identity(going)
      after = Identity(before) }> }"""
"""A model with as many iterations as its first input says, possibly without end."""
ENDLESS = 2**62
ROW = {"x": np.zeros((1, 3), np.float32)}


def request_for(turns: int, timeout_us: int = 0) -> bytes:
    """Return a request for this many iterations."""
    inputs = [
        {"name": "turns", "shape": [], "datatype": "INT64", "data": [turns]},
        {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [7]},
    ]
    return orjson.dumps({"inputs": inputs, "parameters": {"timeout": timeout_us} if timeout_us else {}})


@dataclass
class EndlessSession(DoublingSession):
    """A DoublingSession that waits for its gate without end, and can be stopped."""

    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, feeds, outputs=None):
        self.started.set()
        while not self.gate.wait(0.005):
            if self.stopped.is_set():
                self.stopped.clear()
                raise StoppedError("the run was stopped")
        return {"y": feeds["x"] * np.float32(2)}

    def stop(self) -> None:
        self.stopped.set()


def started(session: DoublingSession, stop_run_s: float) -> Model:
    """Return a model with that session, ready to serve."""
    model = Model("m", "1", ServeSettings(stop_run_s=stop_run_s))
    model.start(loaded(session))
    return model


def test_a_session_stops_its_runs():
    """An endless Loop is stopped within an iteration, and the session stays usable."""
    session = open_session(serialized(LOOP))
    feeds = {"turns": np.array(ENDLESS), "x": np.ones((1, 1), np.float32)}
    timer = threading.Timer(0.1, session.stop)
    timer.start()

    with pytest.raises(StoppedError):
        session.run(feeds)
    assert 1 == session.run({**feeds, "turns": np.array(1)})["y"].item()


def test_abandoned_runs_are_stopped():
    """The caller gets its timeout in time; the model is not ready until the run has ended, and then answers again."""

    async def check() -> None:
        session = EndlessSession()
        model = started(session, stop_run_s=1.3)
        with pytest.raises(DeadlineError):
            await model.infer(ROW, ["y"], 0.05)
        assert State.READY is model.state  # a run may be a little late
        await until(lambda: model.state is State.FAILED)
        assert "callers have left" in model.reason
        with pytest.raises(UnavailableError, match="callers have left") as refused:
            model.check_ready()
        assert "1" == error_answer(refused.value).headers["retry-after"]

        await until(lambda: model.state is State.READY)
        session.gate.set()
        assert 0 == (await model.infer(ROW, ["y"], 5.0)).outputs["y"].sum()
        model.close()

    asyncio.run(check())


def test_models_with_unstoppable_runs_are_not_ready():
    """If a run cannot be stopped, the model is not ready for as long as it goes on."""

    async def check() -> None:
        session = DoublingSession()
        model = started(session, stop_run_s=0.01)
        with pytest.raises(DeadlineError):
            await model.infer(ROW, ["y"], 0.05)
        await until(lambda: model.state is State.FAILED)
        session.gate.set()
        await until(lambda: model.state is State.READY)
        model.close()

    asyncio.run(check())


def test_a_model_pauses_after_repeated_stops():
    """After three stopped runs within a minute the model refuses requests for a while; the reason has the time."""

    async def check() -> None:
        model = started(EndlessSession(), stop_run_s=0.01)
        for _ in range(3):
            with pytest.raises(DeadlineError):
                await model.infer(ROW, ["y"], 0.05)
            await until(lambda: model._policy.backend.batcher._instances[0].current is None)
        await until(lambda: model.state is State.FAILED)
        assert "3 stalled runs had to be stopped" in model.reason
        model.close()

    asyncio.run(check())


def run_of(*jobs: Job, on_event_loop: bool = False) -> BatchRun:
    """Return a run of these jobs that began at once."""
    return BatchRun([job.take(1) for job in jobs], 0, started_ns=1, on_event_loop=on_event_loop)


def test_action_on_a_run():
    """A run is left alone while a caller waits, and on the event loop's thread only for a moment."""

    async def check() -> None:
        waits, left = Job(ROW, ["y"]), Job(ROW, ["y"])
        left.resolve(DeadlineError("late"))
        left.future.exception()
        second = 1_000_000_000

        assert Action.NONE is action_for(run_of(waits, left), 1000 * second, 5.0)
        alone = run_of(left)
        times = [1, 1.5, 2.5, 5, 7]
        assert [Action.NONE, Action.NONE, Action.MARK, Action.MARK, Action.STOP] == [
            action_for(alone, int(at * second), 5.0) for at in times
        ]
        assert Action.MARK is action_for(alone, 1000 * second, 0.0)
        assert Action.NONE is action_for(run_of(waits, on_event_loop=True), MAX_ON_EVENT_LOOP_NS, 5.0)
        assert Action.MOVE is action_for(run_of(waits, on_event_loop=True), MAX_ON_EVENT_LOOP_NS + 2, 5.0)

    asyncio.run(check())


def test_endless_runs_do_not_delay_other_requests(tmp_path):
    """An endless run of a quick model on the event loop's thread does not delay others, and is logged."""
    write_bundle(tmp_path / "loop" / "1", LOOP)
    with serving(tmp_path, "--timeout", "1", "--stop-run", "2") as server:
        infer = "/v2/models/loop/infer"
        for _ in range(200):
            (answer,) = exchange(server, request("POST", infer, body=request_for(1)))
            assert 200 == answer.status
        statuses: list[int] = []
        hung = threading.Thread(
            target=lambda: statuses.append(
                exchange(server, request("POST", infer, body=request_for(ENDLESS)))[0].status
            )
        )
        hung.start()
        time.sleep(0.3)
        (live,) = exchange(server, request(), timeout_s=0.5)
        assert 200 == live.status
        hung.join()
        assert [504] == statuses

        assert server.said("a run goes on although all of its callers have left")
        for path in ("/v2/health/ready", "/v2/models/loop/ready"):
            (answer,) = exchange(server, request("GET", path))
            assert (503, True) == (answer.status, b"callers have left" in answer.body)
        (metadata,) = exchange(server, request("GET", "/v2/models/loop"))
        assert "callers have left" in orjson.loads(metadata.body)["parameters"]["stalled"]

        assert server.said("a stalled run is being stopped")
        assert server.said("has ended after")
        (answer,) = exchange(server, request("POST", infer, body=request_for(1)))
        assert 200 == answer.status
