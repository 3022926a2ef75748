"""One model: admission, the queue, deadlines, failures and the end."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from demi.errors import InferenceError
from demi.server.errors import DeadlineError, UnavailableError
from demi.server.models.model import Model, State
from demi.server.settings import ServeSettings
from tests.server.fakes import DoublingSession, loaded, open_fake, until

X = {"x": np.ones((1, 3), np.float32)}


def serving(session: DoublingSession, max_queue: int = 8) -> Model:
    """A ready model over a session."""
    model = Model("m", "1", ServeSettings(max_queue=max_queue))
    model.start(loaded(session))
    return model


def test_an_answer():
    """Inputs go in, outputs come out."""
    outputs = asyncio.run(serving(open_fake()).infer(X, ["y"], 5))

    assert [[2, 2, 2]] == outputs.outputs["y"].tolist()


def test_the_event_loop_stays_free():
    """While the session runs, other coroutines run too."""

    async def scene():
        session = DoublingSession()
        answer = asyncio.create_task(serving(session).infer(X, ["y"], 5))
        await until(session.started.is_set)
        session.gate.set()  # from the loop itself: it could not if the session held it
        return await answer

    assert [[2, 2, 2]] == asyncio.run(scene()).outputs["y"].tolist()


def test_a_deadline_passes():
    """A run that takes longer than its request may ends in DeadlineError, and soon."""
    session = DoublingSession()
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
        asyncio.run(serving(session).infer(X, ["y"], 0.05))

    assert time.monotonic() - started < 2
    session.gate.set()


def test_a_request_that_gave_up_is_never_run():
    """A job whose deadline passed in the queue is passed over, and the next one is served."""

    async def scene():
        session = DoublingSession()
        model = serving(session)
        first = asyncio.create_task(model.infer(X, ["y"], 5))
        await until(session.started.is_set)
        with pytest.raises(DeadlineError):
            await model.infer(X, ["y"], 0.02)
        last = asyncio.create_task(model.infer(X, ["y"], 5))
        await asyncio.sleep(0)
        session.gate.set()
        await asyncio.gather(first, last)
        return session.runs

    assert 2 == len(asyncio.run(scene()))


def test_a_full_queue():
    """Beyond one running and `max_queue` waiting requests, the next is told to come back."""

    async def scene():
        session = DoublingSession()
        model = serving(session, max_queue=2)
        tasks = [asyncio.create_task(model.infer(X, ["y"], 5))]
        await until(session.started.is_set)
        tasks += [asyncio.create_task(model.infer(X, ["y"], 5)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError, match="queue is full") as caught:
            await model.infer(X, ["y"], 5)
        session.gate.set()
        await asyncio.gather(*tasks)
        return caught.value.retry_after_s

    assert 1 == asyncio.run(scene())


def test_those_who_left_make_room_in_the_queue():
    """A request that gave up no longer takes a place."""

    async def scene():
        session = DoublingSession()
        model = serving(session, max_queue=1)
        first = asyncio.create_task(model.infer(X, ["y"], 5))
        await until(session.started.is_set)
        with pytest.raises(DeadlineError):
            await model.infer(X, ["y"], 0.01)
        second = asyncio.create_task(model.infer(X, ["y"], 5))
        await asyncio.sleep(0.01)
        session.gate.set()
        return await asyncio.gather(first, second)

    assert 2 == len(asyncio.run(scene()))


@pytest.mark.parametrize("error", [InferenceError("kernel"), RuntimeError("kernel"), TimeoutError("kernel")])
def test_a_failing_session_tells_its_caller_and_carries_on(error):
    """A failed run is its own caller's failure, whatever was raised; the next request is served."""

    async def scene():
        session = open_fake(error)
        model = serving(session)
        with pytest.raises((InferenceError, RuntimeError), match="kernel"):
            await model.infer(X, ["y"], 5)
        session.error = None
        return model, await model.infer(X, ["y"], 5)

    model, outputs = asyncio.run(scene())

    assert State.READY is model.state
    assert [[2, 2, 2]] == outputs.outputs["y"].tolist()


def test_no_time_limit():
    """A timeout of 0 is no limit."""
    assert "y" in asyncio.run(serving(open_fake()).infer(X, ["y"], 0)).outputs


def test_admission_by_state():
    """Only a ready model admits; the others say why not, and whether waiting helps."""
    model = Model("m", "1", ServeSettings(max_queue=1))
    with pytest.raises(UnavailableError, match="loading") as loading, model.admitted():
        pass
    model.fail("the digest differs")
    with pytest.raises(UnavailableError, match="the digest differs") as failed, model.admitted():
        pass

    assert (1, None) == (loading.value.retry_after_s, failed.value.retry_after_s)


def test_what_was_admitted_is_answered_while_draining():
    """Draining closes the door behind those who are in."""

    async def scene():
        model = serving(open_fake())
        with model.admitted():
            model.drain()
            assert (State.DRAINING, 1) == (model.state, model.in_flight)
            with pytest.raises(UnavailableError, match="shutting down"), model.admitted():
                pass
            outputs = await model.infer(X, ["y"], 5)
        assert 0 == model.in_flight
        return outputs

    assert "y" in asyncio.run(scene()).outputs


def test_a_closed_model_is_not_ready():
    """A model whose batcher was closed no longer says it is ready, and says why."""

    async def scene():
        model = serving(open_fake())
        model.close()
        await until(lambda: model.state is State.FAILED)
        return model.reason

    assert "the model is being unloaded" == asyncio.run(scene())


def test_closing_answers_those_who_wait():
    """A request that still waits when the model closes gets an error and does not hang."""

    async def scene():
        session = DoublingSession()
        model = serving(session)
        first = asyncio.create_task(model.infer(X, ["y"], 5))
        await until(session.started.is_set)
        second = asyncio.create_task(model.infer(X, ["y"], 5))
        await asyncio.sleep(0.01)
        model.close()
        with pytest.raises(UnavailableError):
            await second
        session.gate.set()
        return await first

    assert "y" in asyncio.run(scene()).outputs
