"""Lifecycle of one model: admission, queue, deadlines, failures and unloading."""

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
    """Return a ready model over a session."""
    model = Model("m", "1", ServeSettings(max_queue=max_queue))
    model.start(loaded(session))
    return model


def test_an_answer():
    """A request is answered with the model's outputs."""
    outputs = asyncio.run(serving(open_fake()).infer(X, ["y"], 5))

    assert [[2, 2, 2]] == outputs.outputs["y"].tolist()


def test_the_event_loop_stays_free():
    """Other coroutines run while the session does."""

    async def scene():
        session = DoublingSession()
        answer = asyncio.create_task(serving(session).infer(X, ["y"], 5))
        await until(session.started.is_set)
        session.gate.set()  # from the event loop itself, which a blocking session would not allow
        return await answer

    assert [[2, 2, 2]] == asyncio.run(scene()).outputs["y"].tolist()


def test_a_run_beyond_its_deadline():
    """A request whose run takes too long soon fails with DeadlineError."""
    session = DoublingSession()
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
        asyncio.run(serving(session).infer(X, ["y"], 0.05))

    assert time.monotonic() - started < 2
    session.gate.set()


def test_an_expired_request_is_never_run():
    """A job whose deadline passed in the queue is skipped, and the next one is served."""

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
    """Beyond one running and `max_queue` waiting requests, the next is refused and asked to retry."""

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


def test_expired_requests_make_room_in_the_queue():
    """An expired request no longer takes a place."""

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
def test_a_failed_run_fails_its_own_request_only(error):
    """A failed run fails its own request, whatever was raised, and the next request is served."""

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


def test_no_deadline():
    """A timeout of 0 sets no deadline."""
    assert "y" in asyncio.run(serving(open_fake()).infer(X, ["y"], 0)).outputs


def test_admission_by_state():
    """Only a ready model admits; the others give a reason, and whether waiting helps."""
    model = Model("m", "1", ServeSettings(max_queue=1))
    with pytest.raises(UnavailableError, match="loading") as loading, model.admitted():
        pass
    model.fail("the digest differs")
    with pytest.raises(UnavailableError, match="the digest differs") as failed, model.admitted():
        pass

    assert (1, None) == (loading.value.retry_after_s, failed.value.retry_after_s)


def test_admitted_requests_are_answered_while_draining():
    """A draining model refuses new requests and answers admitted ones."""

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
    """A model whose batcher was closed is not ready, with the reason."""

    async def scene():
        model = serving(open_fake())
        model.close()
        await until(lambda: model.state is State.FAILED)
        return model.reason

    assert "the model is being unloaded" == asyncio.run(scene())


def test_closing_fails_waiting_requests():
    """A request that still waits when the model closes fails and does not hang."""

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
