"""Dynamic batching: every caller gets exactly its rows, also when others fail, leave or miss their deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from demi.bundles.manifest import BatchSpec
from demi.errors import DeviceLostError, InferenceError
from demi.server.errors import DeadlineError, UnavailableError
from demi.server.models.loading import Loaded
from demi.server.models.model import Model, State
from demi.server.protocol.signature import Signature
from demi.server.scheduling import instance
from demi.server.scheduling.batcher import RESTARTS
from demi.server.scheduling.job import Job
from demi.server.scheduling.queue import SWEEP_S, Queue
from demi.server.settings import ServeSettings
from demi.tensors import parse_spec
from tests.server.fakes import DoublingSession, open_fake, until

FREE_COLUMNS = parse_spec("x:fp32[batch,columns]"), parse_spec("y:fp32[batch,columns]")


@dataclass
class RowSession(DoublingSession):
    """DoublingSession for rows of any length that fails on every batch with the number 13 in it."""

    inputs: Any = FREE_COLUMNS[:1]
    outputs: Any = FREE_COLUMNS[1:]
    pause_s: float = 0.0
    active: int = 0
    most_active: int = field(default=0)

    def run(self, feeds, outputs=None):
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        time.sleep(self.pause_s)
        try:
            result = super().run(feeds, outputs)
        finally:
            self.active -= 1
        if np.any(feeds["x"] == 13):
            raise InferenceError("13 is no number to double")
        return result


@dataclass
class StagingSession(DoublingSession):
    """DoublingSession that can stage inputs ahead, and counts staged inputs and runs."""

    staged: int = 0
    ran: int = 0

    def stage(self, feeds):
        self.staged += 1

        def run(outputs=None):
            self.ran += 1
            return self.run(feeds, outputs)

        return run


def open_rows(pause_s: float = 0.0, *, shut: bool = False) -> RowSession:
    """Return a RowSession whose runs take `pause_s` seconds; with `shut`, its gate stays closed."""
    session = RowSession(pause_s=pause_s)
    if not shut:
        session.gate.set()
    return session


def model_of(session: DoublingSession, *, max_rows: int = 8, max_queue: int = 512, max_delay_us: int = 0) -> Model:
    """Return a ready model whose runs take at most `max_rows` rows."""
    model = Model("m", "1", ServeSettings(max_queue=max_queue, max_queue_delay_us=max_delay_us))
    signature = Signature(session.inputs, session.outputs, BatchSpec(free=True, max_size=max_rows))
    model.start(Loaded((session,), signature, "fp16"))
    return model


def values(rows: int, columns: int = 3, start: int = 100) -> np.ndarray:
    """Return rows that differ in every element from those of another `start`."""
    return (start + np.arange(rows * columns, dtype=np.float32)).reshape(rows, columns)


def ask(model: Model, x: np.ndarray, timeout_s: float = 10.0) -> asyncio.Task[Any]:
    """Start a request and return its task."""
    return asyncio.create_task(model.infer({"x": x}, ["y"], timeout_s))


async def behind_a_run(session: RowSession, model: Model, inputs: Sequence[np.ndarray]) -> list[Any]:
    """Return the answers to inputs that all arrive while the device is busy with another request."""
    first = ask(model, values(1))
    await until(session.started.is_set)
    tasks = [ask(model, x) for x in inputs]
    await asyncio.sleep(0.02)
    session.gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def scene(inputs: Sequence[np.ndarray], **limits: Any) -> tuple[list[Any], list[int]]:
    """Return the answers to inputs that arrive while the device is busy, and the rows of each later run."""
    session = open_rows(shut=True)
    model = model_of(session, **limits)
    answers = asyncio.run(behind_a_run(session, model, inputs))
    model.close()
    return answers, [len(feeds["x"]) for feeds in session.runs[1:]]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3)), min_size=1, max_size=30),
    max_rows=st.integers(1, 9),
    pause_s=st.sampled_from([0.0, 0.0005]),
    max_delay_us=st.sampled_from([0, 300]),
)
def test_every_caller_gets_exactly_its_rows(sizes, max_rows, pause_s, max_delay_us):
    """Any mix of rows and lengths, requests larger than a run included, gets correct answers, and no run is too large."""
    session = open_rows(pause_s)
    model = model_of(session, max_rows=max_rows, max_delay_us=max_delay_us)
    inputs = [values(rows, columns, start=1000 * index + 100) for index, (rows, columns) in enumerate(sizes)]

    async def all_at_once():
        return await asyncio.gather(*(ask(model, x) for x in inputs))

    answers = asyncio.run(all_at_once())
    model.close()

    for x, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(2 * x, answer.outputs["y"])
    assert max_rows >= max(len(feeds["x"]) for feeds in session.runs)
    assert 1 == session.most_active


def test_requests_that_arrive_during_a_run_share_the_next():
    """Five requests that arrive while the device is busy share one run."""
    answers, runs = scene([values(1, start=10 * index + 100) for index in range(5)])

    assert [5] == runs
    assert [[[240, 242, 244]]] == [answer.outputs["y"].tolist() for answer in answers[2:3]]


def test_requests_that_arrive_together_share_a_run():
    """Requests read in one iteration of the event loop share a run, although the device was free for the first."""
    session = open_rows()
    model = model_of(session)

    async def together():
        return await asyncio.gather(*(ask(model, values(1)) for _ in range(6)))

    for _ in range(2):  # on a second event loop as on the first
        asyncio.run(together())

    assert [6, 6] == [len(feeds["x"]) for feeds in session.runs]


def test_requests_of_several_clients_share_a_run_some_turns_later():
    """Once requests have shared a run, the next ones may arrive a few turns of the event loop apart, as gRPC's do."""
    session = open_rows()
    model = model_of(session)

    async def one_by_one():
        await asyncio.gather(*(ask(model, values(1)) for _ in range(2)))
        tasks = []
        for _ in range(3):
            tasks.append(ask(model, values(1)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(one_by_one())
    model.close()

    assert [2, 3] == [len(feeds["x"]) for feeds in session.runs]


def test_a_request_that_fits_a_run_is_not_split():
    """A request that does not fit beside the others waits for the next run; smaller ones may fill the gap."""
    _, runs = scene([values(3), values(7), values(5), values(1)])

    assert [8, 8] == runs


def test_a_request_larger_than_a_run():
    """Twenty rows take three runs of at most eight rows, the last one shared, and get one answer."""
    answers, runs = scene([values(20), values(2)])

    assert [8, 8, 6] == runs
    np.testing.assert_array_equal(2 * values(20), answers[0].outputs["y"])


def test_lengths_run_separately_in_order_of_arrival():
    """The oldest request's length runs first, with all other requests of that length."""
    session = open_rows(shut=True)
    model = model_of(session)
    inputs = [values(1, columns) for columns in (2, 5, 2, 5, 7, 2)]
    answers = asyncio.run(behind_a_run(session, model, inputs))

    assert [(3, 2), (2, 5), (1, 7)] == [feeds["x"].shape for feeds in session.runs[1:]]
    for x, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(2 * x, answer.outputs["y"])


def test_a_bad_request_fails_alone():
    """The requests of a failed batch run again one by one, and only those that fail alone get an error."""
    bad = np.full((1, 3), 13, np.float32)
    answers, runs = scene([values(1), bad, values(2)])

    assert [4, 1, 1, 2] == runs
    assert "13 is no number" in str(answers[1])
    np.testing.assert_array_equal(2 * values(1), answers[0].outputs["y"])
    np.testing.assert_array_equal(2 * values(2), answers[2].outputs["y"])


def test_a_bad_row_in_a_large_request_fails_it_once():
    """If one run of a split request fails, the request fails, and its other rows are not run."""
    large = values(30)
    large[0, 0] = 13
    answers, runs = scene([large, values(1)])

    assert "13 is no number" in str(answers[0])
    np.testing.assert_array_equal(2 * values(1), answers[1].outputs["y"])
    assert sum(runs) < 30


def test_outputs_without_a_row_for_each_input_row_are_never_split():
    """A batch whose output lacks rows fails; run alone, each request gets its output."""

    class Summing(RowSession):
        def run(self, feeds, outputs=None):
            return {"y": super().run(feeds, outputs)["y"].sum(0, keepdims=True)}

    session = Summing()
    model = model_of(session)
    answers = asyncio.run(behind_a_run(session, model, [values(1), values(1, start=500)]))

    assert [[[200, 202, 204]], [[1000, 1002, 1004]]] == [answer.outputs["y"].tolist() for answer in answers]


def test_abandoned_requests_are_never_run():
    """A request whose client disconnects while it waits is not run."""

    async def leaving():
        session = open_rows(shut=True)
        model = model_of(session)
        left = asyncio.Event()

        async def gone():
            await left.wait()
            raise ClientDisconnect

        first = ask(model, values(1))
        await until(session.started.is_set)
        second = asyncio.create_task(model.infer({"x": values(4)}, ["y"], 10, gone))
        await asyncio.sleep(0.05)
        left.set()
        with pytest.raises(ClientDisconnect):
            await second
        session.gate.set()
        await first
        await ask(model, values(2))
        return [len(feeds["x"]) for feeds in session.runs]

    assert [1, 2] == asyncio.run(leaving())


def test_expired_requests_are_never_run():
    """A request whose deadline passed in the queue is skipped, and its neighbours are served."""

    async def late():
        session = open_rows(shut=True)
        model = model_of(session)
        first = ask(model, values(1))
        await until(session.started.is_set)
        second, third = ask(model, values(4), 0.01), ask(model, values(2))
        with pytest.raises(DeadlineError):
            await second
        session.gate.set()
        await asyncio.gather(first, third)
        return [len(feeds["x"]) for feeds in session.runs]

    assert [1, 2] == asyncio.run(late())


def test_a_full_queue_is_refused_before_the_body_is_read():
    """Admission raises the error of the full queue."""

    async def full():
        session = open_rows(shut=True)
        model = model_of(session, max_queue=2)
        tasks = [ask(model, values(1))]
        await until(session.started.is_set)
        tasks += [ask(model, values(1)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError, match="queue is full: 2 requests"), model.admitted():
            pass
        session.gate.set()
        await asyncio.gather(*tasks)
        with model.admitted():
            pass

    asyncio.run(full())


def test_a_full_batch_is_prepared_while_the_device_runs():
    """A batch that cannot grow leaves the queue before the device is free; one that can grow waits."""

    async def ahead(rows: int) -> int:
        session = open_rows(shut=True)
        model = model_of(session)
        tasks = [ask(model, values(1))]
        await until(session.started.is_set)
        tasks += [ask(model, values(1)) for _ in range(rows)]
        await asyncio.sleep(0.05)
        waiting = model.queue_length
        session.gate.set()
        await asyncio.gather(*tasks)
        return waiting

    assert (7, 1) == (asyncio.run(ahead(7)), asyncio.run(ahead(9)))


def test_the_next_batch_is_staged_during_a_run():
    """A session that supports staging receives the next batch's inputs before the current run ends."""
    session = StagingSession()
    model = model_of(session, max_rows=2)

    async def run():
        first = ask(model, values(2))
        await until(session.started.is_set)
        second = ask(model, values(2))
        await until(lambda: session.staged == 2)
        assert 1 == session.ran
        session.gate.set()
        return await asyncio.gather(first, second)

    answers = asyncio.run(run())
    model.close()

    for answer in answers:
        np.testing.assert_array_equal(2 * values(2), answer.outputs["y"])


def test_a_delay_lets_a_batch_grow():
    """With a queue delay the first request waits for others at most that long; a full batch does not wait."""

    async def timed(count: int, delay_us: int) -> tuple[list[int], float]:
        session = open_rows()
        model = model_of(session, max_rows=3, max_delay_us=delay_us)
        started = time.monotonic()
        tasks = []
        for _ in range(count):
            tasks.append(ask(model, values(1)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        return [len(feeds["x"]) for feeds in session.runs], time.monotonic() - started

    assert [2] == asyncio.run(timed(2, 200_000))[0]
    runs, seconds = asyncio.run(timed(3, 5_000_000))
    assert [3] == runs
    assert seconds < 3


def test_a_model_without_a_batch_axis_runs_one_request_at_a_time():
    """Requests that cannot be joined take the same path, each in a run of its own."""

    async def alone():
        session = open_rows()
        model = Model("m", "1", ServeSettings(max_queue=8))
        model.start(Loaded((session,), Signature(session.inputs, session.outputs, BatchSpec(free=False)), "fp16"))
        answers = await asyncio.gather(*(ask(model, values(40, start=1000 * index + 100)) for index in range(3)))
        return [len(feeds["x"]) for feeds in session.runs], [answer.outputs["y"][0, 0] for answer in answers]

    assert ([40, 40, 40], [200, 2200, 4200]) == asyncio.run(alone())


def test_a_run_computes_the_union_of_requested_outputs():
    """A run computes every output that one of its requests asked for, and each caller gets its own."""

    class Two(RowSession):
        asked: list[Any]

        def run(self, feeds, outputs=None):
            self.asked = [*getattr(self, "asked", []), list(outputs)]
            doubled = super().run(feeds)["y"]
            return {name: {"y": doubled, "z": -doubled}[name] for name in outputs}

    async def both():
        session = Two(outputs=(FREE_COLUMNS[1], parse_spec("z:fp32[batch,columns]")))
        model = model_of(session)
        first = ask(model, values(1))
        await until(session.started.is_set)
        tasks = [asyncio.create_task(model.infer({"x": values(1)}, [name], 5)) for name in ("z", "y")]
        await asyncio.sleep(0.01)
        session.gate.set()
        answers = [await first, *await asyncio.gather(*tasks)][1:]
        return session.asked, [answer.outputs[name].tolist() for name, answer in zip("zy", answers, strict=True)]

    asked, answers = asyncio.run(both())

    assert [["y"], ["y", "z"]] == asked
    assert [[[-200, -202, -204]], [[200, 202, 204]]] == answers


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_too_many_crashes_close_the_batcher():
    """If worker threads keep crashing, every waiting request fails, and the model is not ready, with the reason."""

    async def ending():
        session = open_rows(shut=True)
        model = model_of(session, max_rows=1)
        tasks = [ask(model, values(1)) for _ in range(RESTARTS + 3)]
        await until(session.started.is_set)
        session.error = SystemExit("enough")
        await asyncio.sleep(0.01)
        session.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: model.state is State.FAILED)
        with pytest.raises(UnavailableError, match="SystemExit: enough"), model.admitted():
            pass
        return answers

    answers = asyncio.run(ending())

    assert [UnavailableError] * (RESTARTS + 3) == [type(answer) for answer in answers]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_crashed_thread_is_replaced():
    """Only the batch that crashed its thread fails; the requests behind it are answered."""

    async def dying():
        session = open_rows(shut=True)
        model = model_of(session, max_rows=1)
        first = ask(model, values(1))
        await until(session.started.is_set)
        session.error = SystemExit("once")
        session.gate.set()
        failed = await asyncio.gather(first, return_exceptions=True)
        session.error = None
        return failed, await asyncio.gather(*(ask(model, values(1)) for _ in range(5))), model.state

    failed, answers, state = asyncio.run(dying())

    assert "crashed with SystemExit" in str(failed[0])
    assert [[[200, 202, 204]]] * 5 == [answer.outputs["y"].tolist() for answer in answers]
    assert State.READY is state


def test_instances_run_at_the_same_time():
    """With two sessions a second request runs during the first, and both answers are correct."""

    async def both():
        slow, free = open_rows(shut=True), open_rows()
        model = Model("m", "1", ServeSettings(max_queue=8))
        signature = Signature(slow.inputs, slow.outputs, BatchSpec(free=True, max_size=1))
        model.start(Loaded((slow, free), signature, "fp16"))
        tasks = [ask(model, values(1, start=100 * index)) for index in range(6)]
        await until(lambda: len(free.runs) >= 4)
        running = slow.started.is_set()
        slow.gate.set()
        return running, [answer.outputs["y"][0, 0] for answer in await asyncio.gather(*tasks)]

    assert (True, [0, 200, 400, 600, 800, 1000]) == asyncio.run(both())


def test_closing_ends_the_threads():
    """The threads of a closed model end soon."""
    model = model_of(open_fake())
    model.close()

    assert model.join(2)


def test_answers_after_the_loop_has_closed_are_dropped():
    """A run that outlives the event loop causes no error."""
    session = open_rows(shut=True)
    model = model_of(session)

    async def abandon() -> Callable[[], bool]:
        task = ask(model, values(1))
        await until(session.started.is_set)
        task.cancel()
        return session.gate.is_set

    asyncio.run(abandon())
    session.gate.set()
    model.close()

    assert model.join(2)


def test_a_quick_model_refuses_no_request_it_can_serve(monkeypatch):
    """If far more requests than the queue holds come at once, full batches run as soon as they are full."""

    async def flood() -> tuple[list[Any], list[int]]:
        session = open_rows()
        model = model_of(session, max_rows=4, max_queue=4)
        monkeypatch.setattr(instance, "QUICK_NS", 10**12)  # counts as quick on any machine
        answers = await asyncio.gather(
            *(ask(model, values(1, start=100 + n)) for n in range(32)), return_exceptions=True
        )
        return answers, [len(run["x"]) for run in session.runs]

    answers, rows = asyncio.run(flood())

    assert [200 + 2 * n for n in range(32)] == [answer.outputs["y"][0, 0] for answer in answers]
    assert [4] * 8 == rows


def test_a_full_queue_is_not_swept_on_every_refusal():
    """Abandoned requests make room, but the queue is swept only once per interval."""
    waiting = Queue(max_jobs=50, max_rows=8)
    looks = 0

    class Left(Job):
        @property
        def wanted(self) -> bool:
            nonlocal looks
            looks += 1
            return looks <= 50

    async def fill() -> None:
        for _ in range(50):
            waiting.add(Left({"x": values(1)}, ["y"], key=((3,),)))

    asyncio.run(fill())

    assert [False] * 100 == [waiting.make_room() for _ in range(100)]
    assert 50 == looks
    time.sleep(2 * SWEEP_S)
    assert waiting.make_room()
    assert 0 == len(waiting)


def test_a_lost_device_closes_the_model():
    """After a fatal device error the model is not ready, with the reason, and clients are not asked to retry."""

    async def losing():
        session = open_rows()
        model = model_of(session)
        await ask(model, values(1))
        session.error = DeviceLostError("cuda:0 is lost: an illegal memory access was encountered")
        (first,) = await asyncio.gather(ask(model, values(1)), return_exceptions=True)
        await until(lambda: model.state is State.FAILED)
        with pytest.raises(UnavailableError, match="illegal memory access") as caught, model.admitted():
            pass
        return first, caught.value.retry_after_s

    first, retry_after_s = asyncio.run(losing())

    assert isinstance(first, DeviceLostError)
    assert retry_after_s is None


def test_a_request_without_rows_is_run_with_one():
    """Its answer has no rows either; an empty batch would reach kernels that corrupt memory."""

    async def asking():
        session = open_rows()
        model = model_of(session)
        answer = await ask(model, values(0, columns=4))
        model.close()
        return answer.outputs["y"].shape, [feeds["x"].shape for feeds in session.runs]

    assert ((0, 4), [(1, 4)]) == asyncio.run(asking())
