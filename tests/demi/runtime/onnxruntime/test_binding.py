"""Tensors bound to device memory: a real ONNX Runtime, whose device is this machine's memory."""

import contextlib
import dataclasses
import gc
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import onnxruntime
import pytest

from demi.errors import InferenceError, TensorError
from demi.runtime.base import CPU, Device, stage
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.capture_lock import CAPTURE_LOCK, CaptureLock
from demi.runtime.onnxruntime.binding import AHEAD, Bindable, Binder, can_bind
from demi.runtime.onnxruntime.cuda_graphs import GraphBinder, as_rows, bucket_of, can_replay
from demi.runtime.onnxruntime.session import OrtSession, open_session, require_runtime
from demi.tensors import parse_spec
from tests.fake_cuda import FakeCudart
from tests.fakes import FakeSession
from tests.models import MLP, parse, text

TWO = "two (float[n, 3] x, int64[n] k) => (float[n, 3] a, int64[n] b) { a = Neg(x) b = Abs(k) }"
GROWING = "growing (float[n] x) => (int64[1, m] where) { where = NonZero(x) }"
BRAIN = "brain (bfloat16[n] x) => (bfloat16[n] y) { y = Identity(x) }"
RESHAPE = "fragile (float[a, b] x, int64[r] shape) => (float[c, d] y) { y = Reshape(x, shape) }"


def bound(model, most=0):
    """A session on the CPU that is run as one on a GPU is: tensors at addresses, copies on a stream."""
    cudart = FakeCudart()
    cudart.foreign_device_memory = True
    session = open_session(text(parse(model)))
    asked = []

    def run_options(graph):
        asked.append(graph)
        return onnxruntime.RunOptions()

    bindable = Bindable(session._session, session.inputs, session.outputs, run_options, ("cpu", 0))
    cuda = Cuda(Device("cuda"), cudart)
    session.bind(GraphBinder(bindable, cuda, most) if most else Binder(bindable, cuda))
    return session, cudart, asked


def in_another_thread(work):
    """What it returns."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def can_load():
    """Return whether a session may be made now."""
    return CAPTURE_LOCK._capturing is None


def test_answers_are_those_of_a_plain_run():
    """Binding changes where tensors lie, and nothing else."""
    plain, (session, *_) = open_session(text(parse(MLP))), bound(MLP)
    for rows in (1, 5, 2):
        feeds = {"x": np.random.default_rng(rows).random((rows, 4), np.float32)}

        np.testing.assert_array_equal(plain.run(feeds)["y"], session.run(feeds)["y"])


def test_outputs_by_name():
    """Only what is asked for is fetched."""
    session, *_ = bound(TWO)
    feeds = {"x": np.float32([[1, 2, 3]]), "k": np.int64([-4])}

    assert {"b": [4]} == {name: array.tolist() for name, array in session.run(feeds, ["b"]).items()}
    assert ["a", "b"] == list(session.run(feeds))


@pytest.mark.parametrize(("x", "where"), [([0, 5, 0, 6], [[1, 3]]), ([0, 0], [[]])])
def test_sizes_that_depend_on_the_data(x, where):
    """An output's size is known after the run, and may be zero."""
    assert where == bound(GROWING)[0].run({"x": np.float32(x)})["where"].tolist()


def test_bfloat16_goes_in_and_out_as_its_bits():
    """NumPy has no bfloat16: addresses and ONNX's number of the type are enough."""
    bits = np.array([1.5, -2.0]).astype(ml_dtypes.bfloat16).view(np.uint16)
    (answer,) = bound(BRAIN)[0].run({"x": bits}).values()

    assert (bits.tolist(), np.uint16) == (answer.tolist(), answer.dtype)


@pytest.mark.parametrize("x", [np.zeros((1, 5), np.float32), np.zeros((1, 4)), np.zeros((1, 4), np.float16)])
def test_arrays_that_do_not_fit_are_never_read_as_something_else(x):
    """An address has no dtype: shape and dtype are checked before one is bound."""
    with pytest.raises(TensorError):
        bound(MLP)[0].run({"x": x})


def test_the_next_batch_is_copied_while_one_waits_for_its_run():
    """Two batches may be staged at once, each with buffers of its own."""
    session, *_ = bound(MLP)
    feeds = [{"x": np.full((1, 4), value, np.float32)} for value in (1, 2)]
    ready = [stage(session, each) for each in feeds]

    for each, run in reversed(list(zip(feeds, ready, strict=True))):
        np.testing.assert_array_equal(open_session(text(parse(MLP))).run(each)["y"], run(None)["y"])


def test_failing_runs_use_up_nothing():
    """A run that fails says so in the runtime's words and gives its lane back."""
    session, *_ = bound(RESHAPE)
    feeds = {"x": np.zeros((2, 3), np.float32), "shape": np.int64([4, 4])}
    for _ in range(AHEAD + 1):
        with pytest.raises(InferenceError, match="ONNX Runtime failed: "):
            session.run(feeds)


def test_a_run_waits_for_itself_alone(monkeypatch):
    """Waiting for the device would wait for other models, and break what one of them records."""
    monkeypatch.delattr(onnxruntime.IOBinding, "synchronize_outputs")

    assert [[-1, -2, -3]] == bound(TWO)[0].run({"x": np.float32([[1, 2, 3]]), "k": np.int64([1])})["a"].tolist()


def test_sessions_end_without_leaving_memory():
    """When a session goes, its buffers go with it."""
    session, cudart, _ = bound(MLP)
    session.run({"x": np.zeros((1, 4), np.float32)})
    assert cudart.device
    del session
    gc.collect()

    assert ({}, {}, {}) == (cudart.device, cudart.pinned, cudart.streams)


class TestCaptureLock:
    """Recordings, and sessions that come and go."""

    def test_loading_waits_for_a_recording_and_for_nothing_else(self):
        """Two may load at once, and what would record meanwhile does not; they wait for a recording."""
        lock, order = CaptureLock(), []

        def enter(name, section):
            with section() as may_capture:
                order.append((name, may_capture))

        with lock.changing_sessions():
            in_another_thread(lambda: enter("loads as well", lock.changing_sessions))
            in_another_thread(lambda: enter("runs", lock.capturing))
        with lock.capturing() as may_capture:
            order.append(("records", may_capture))
            loader = threading.Thread(target=enter, args=("loads", lock.changing_sessions))
            loader.start()
            loader.join(0.05)
            order.append(("recorded", None))
        loader.join(5)

        assert [
            *(("loads as well", None), ("runs", False)),
            *(("records", True), ("recorded", None), ("loads", None)),
        ] == order

    def test_what_runs_while_others_load_is_apart_as_well(self):
        """It may be a thread's first run: nothing is recorded until it has ended, though those who loaded are done."""
        lock, loading = CaptureLock(), contextlib.ExitStack()
        loading.enter_context(lock.changing_sessions())
        with lock.capturing() as may_capture:
            assert not may_capture
            loading.close()
            with lock.capturing() as may_capture:
                assert not may_capture
        with lock.capturing() as may_capture:
            assert may_capture

    def test_the_first_run_of_a_thread_waits_for_a_recording(self):
        """The runtime makes handles for it, which may synchronize the device; later runs do not wait."""
        session, *_ = bound(MLP)
        feeds = {"x": np.zeros((1, 4), np.float32)}
        with ThreadPoolExecutor(1) as pool:
            with CAPTURE_LOCK.capturing():
                first = pool.submit(session.run, feeds)
                with pytest.raises(TimeoutError):
                    first.result(0.05)
            first.result(5)
            with CAPTURE_LOCK.capturing():
                pool.submit(session.run, feeds).result(5)

    def test_an_unbound_run_on_a_gpu_waits_for_a_recording(self):
        """Strings have no address; the runtime allocates in a thread that CUDA refuses memory meanwhile."""
        session = OrtSession(open_session(text(parse(MLP)))._session, Device("cuda"), require_runtime().RunOptions)
        feeds = {"x": np.zeros((1, 4), np.float32)}
        with ThreadPoolExecutor(1) as pool:
            with CAPTURE_LOCK.capturing():
                answer = pool.submit(session.run, feeds)
                with pytest.raises(TimeoutError):
                    answer.result(0.05)
            answer.result(5)

    def test_what_a_recording_thread_lets_go_of(self):
        """It does not wait for itself: the collector may come by at any time."""
        with CAPTURE_LOCK.capturing():
            session, cudart, _ = bound(TWO, most=4)
            del session
            gc.collect()

        assert "cudaSetDevice" in cudart.calls

    def test_a_session_is_let_go_of_apart(self):
        """Its graphs are destroyed while nothing is recorded, whoever drops the last reference, in whatever thread."""
        session, cudart, _ = bound(TWO, most=4)
        session.run({"x": np.zeros((4, 3), np.float32), "k": np.zeros(4, np.int64)})
        held = [session]
        del session
        with CAPTURE_LOCK.capturing():
            dropping = threading.Thread(target=held.clear)
            dropping.start()
            dropping.join(0.05)
            assert cudart.device
        dropping.join(5)

        assert ({}, {}, {}) == (cudart.device, cudart.pinned, cudart.streams)


def test_strings_have_no_address():
    """A model that takes strings is run without binding."""
    assert not can_bind([parse_spec("text:string[n]")])
    assert can_bind([parse_spec("x:float32[n]")])


def test_sessions_that_cannot_stage_are_run_later():
    """`stage` works with every session."""
    spec = parse_spec("x:float32[1]")
    session = FakeSession([spec], [spec], lambda feeds: feeds)
    ready = stage(session, {"x": np.float32([3])})
    assert [] == session.asked

    assert [3.0] == ready(None)["x"].tolist()


class TestGraphs:
    """One recorded graph for each bucket of batch sizes."""

    def test_answers_are_those_of_a_plain_run(self):
        """Filling a batch up to its bucket changes no row, and adds none."""
        plain, (session, *_) = open_session(text(parse(TWO))), bound(TWO, most=6)
        for rows in (1, 2, 3, 3, 6, 7):
            random = np.random.default_rng(rows)
            feeds = {"x": random.random((rows, 3), np.float32), "k": random.integers(-9, 9, rows)}
            want, got = plain.run(feeds), session.run(feeds)

            assert {name: array.tolist() for name, array in want.items()} == {
                name: array.tolist() for name, array in got.items()
            }

    def test_a_bucket_is_recorded_once(self):
        """The first run of a bucket shows its outputs' shapes without a graph; all others name one graph."""
        session, _, asked = bound(TWO, most=4)
        for rows in (3, 4, 3):
            session.run({"x": np.zeros((rows, 3), np.float32), "k": np.zeros(rows, np.int64)})

        assert ["-1", "1", "1", "1"] == asked

    def test_a_bucket_is_not_recorded_while_another_model_loads(self):
        """That takes seconds: the request is answered without, and the next one records."""
        session, _, asked = bound(TWO, most=4)
        feeds = {"x": np.ones((4, 3), np.float32), "k": np.arange(4)}
        with CAPTURE_LOCK.changing_sessions():
            first = session.run(feeds)
        second = session.run(feeds)

        assert ["-1", "-1", "1"] == asked
        assert {name: array.tolist() for name, array in first.items()} == {
            name: array.tolist() for name, array in second.items()
        }

    def test_no_session_is_made_while_something_is_recorded(self):
        """Making one synchronizes the device, which CUDA forbids then. Every thread records its own, once."""
        session, cudart, _ = bound(TWO, most=4)
        free = []

        def run_options(graph):
            free.append((graph, in_another_thread(can_load)))
            return onnxruntime.RunOptions()

        bindable = dataclasses.replace(session._binder._bindable, run_options=run_options)
        session.bind(GraphBinder(bindable, Cuda(Device("cuda"), cudart), 4))
        feeds = {"x": np.zeros((4, 3), np.float32), "k": np.zeros(4, np.int64)}
        for _ in range(2):
            session.run(feeds)
        in_another_thread(lambda: session.run(feeds))

        assert [("-1", False), ("1", False), ("1", True), ("1", False)] == free

    def test_a_recording_that_fails_says_what_to_leave_out(self):
        """The runtime's own words, and the option that asked for graphs."""
        session, *_ = bound(RESHAPE, most=2)
        with pytest.raises(InferenceError) as caught:
            session._binder._bindable.run(session._binder._bindable.session.io_binding(), "1")
        assert "--cuda-graphs" in caught.value.hint

    def test_batches_beyond_the_largest_bucket_record_nothing(self):
        """They run as they are."""
        session, _, asked = bound(TWO, most=4)
        session.run({"x": np.zeros((5, 3), np.float32), "k": np.zeros(5, np.int64)})

        assert ["-1"] == asked

    def test_staging_leaves_the_running_batch_alone(self):
        """Two batches of one bucket have two graphs, so that copying one in cannot reach the other."""
        session, *_ = bound(TWO, most=1)
        runs = [session.stage({"x": np.full((1, 3), value, np.float32), "k": np.int64([value])}) for value in (-1, -2)]

        assert [[1], [2]] == [run(None)["b"].tolist() for run in runs]

    @pytest.mark.parametrize(("rows", "bucket"), [(0, None), (1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6), (7, None)])
    def test_buckets(self, rows, bucket):
        """Powers of two, the last one cut to the largest batch."""
        assert bucket == bucket_of(rows, 6)

    def test_filling_repeats_the_last_row(self):
        """No new values come in, so nothing can become NaN that was not."""
        assert [1, 2, 2, 2] == as_rows(np.array([1, 2]), 4).tolist()

    @pytest.mark.parametrize(
        ("inputs", "outputs", "can"),
        [
            (["x:float32[n,3]"], ["y:float32[n]"], True),
            (["x:float32[n,seq]"], ["y:float32[n]"], False),
            (["x:float32[n,3]"], ["y:float32[m]"], False),
            (["x:float32[2,3]"], ["y:float32[2]"], False),
            (["x:float32[n,3]", "k:int64[]"], ["y:float32[n]"], False),
            (["x:string[n]"], ["y:float32[n]"], False),
        ],
    )
    def test_what_can_be_replayed(self, inputs, outputs, can):
        """Every shape must follow from the number of rows."""
        assert can is can_replay([*map(parse_spec, inputs)], [*map(parse_spec, outputs)])


def test_this_machines_cpu_sessions_are_not_bound():
    """A CPU session hands its arrays over as they are."""
    session = open_session(text(parse(MLP)))

    assert CPU == session.device
    assert session._binder is None
    assert list(itertools.chain(session.run({"x": np.zeros((1, 4), np.float32)}))) == ["y"]
