"""Tensors bound to device memory: a real ONNX Runtime, with this machine's memory as the device."""

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
    """Return a CPU session that runs like one on a GPU: tensors at addresses, copies on a stream."""
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
    """Return the function's result from another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def can_load():
    """Return whether a session can be created now."""
    return CAPTURE_LOCK._capturing is None


def test_outputs_equal_those_of_an_unbound_run():
    """Bound runs have the outputs of unbound ones."""
    plain, (session, *_) = open_session(text(parse(MLP))), bound(MLP)
    for rows in (1, 5, 2):
        feeds = {"x": np.random.default_rng(rows).random((rows, 4), np.float32)}

        np.testing.assert_array_equal(plain.run(feeds)["y"], session.run(feeds)["y"])


def test_outputs_by_name():
    """Only the requested outputs are fetched."""
    session, *_ = bound(TWO)
    feeds = {"x": np.float32([[1, 2, 3]]), "k": np.int64([-4])}

    assert {"b": [4]} == {name: array.tolist() for name, array in session.run(feeds, ["b"]).items()}
    assert ["a", "b"] == list(session.run(feeds))


@pytest.mark.parametrize(("x", "where"), [([0, 5, 0, 6], [[1, 3]]), ([0, 0], [[]])])
def test_sizes_that_depend_on_the_data(x, where):
    """An output's size is known after the run, and may be zero."""
    assert where == bound(GROWING)[0].run({"x": np.float32(x)})["where"].tolist()


def test_bfloat16_goes_in_and_out_as_its_bits():
    """bfloat16, which NumPy does not have, is bound by its address and ONNX's type number."""
    bits = np.array([1.5, -2.0]).astype(ml_dtypes.bfloat16).view(np.uint16)
    (answer,) = bound(BRAIN)[0].run({"x": bits}).values()

    assert (bits.tolist(), np.uint16) == (answer.tolist(), answer.dtype)


@pytest.mark.parametrize("x", [np.zeros((1, 5), np.float32), np.zeros((1, 4)), np.zeros((1, 4), np.float16)])
def test_arrays_are_checked_before_binding(x):
    """Shape and dtype are checked before an address is bound, because an address has no dtype."""
    with pytest.raises(TensorError):
        bound(MLP)[0].run({"x": x})


def test_staging_two_batches():
    """Two batches may be staged at once, each with its own buffers."""
    session, *_ = bound(MLP)
    feeds = [{"x": np.full((1, 4), value, np.float32)} for value in (1, 2)]
    ready = [stage(session, each) for each in feeds]

    for each, run in reversed(list(zip(feeds, ready, strict=True))):
        np.testing.assert_array_equal(open_session(text(parse(MLP))).run(each)["y"], run(None)["y"])


def test_failed_runs_return_their_lane():
    """A failed run raises the runtime's message and returns its lane."""
    session, *_ = bound(RESHAPE)
    feeds = {"x": np.zeros((2, 3), np.float32), "shape": np.int64([4, 4])}
    for _ in range(AHEAD + 1):
        with pytest.raises(InferenceError, match="ONNX Runtime failed: "):
            session.run(feeds)


def test_a_run_synchronizes_its_own_stream(monkeypatch):
    """A run synchronizes only its stream: synchronizing the device would wait for other models and break captures."""
    monkeypatch.delattr(onnxruntime.IOBinding, "synchronize_outputs")

    assert [[-1, -2, -3]] == bound(TWO)[0].run({"x": np.float32([[1, 2, 3]]), "k": np.int64([1])})["a"].tolist()


def test_closed_sessions_free_their_memory():
    """A closed session frees its buffers."""
    session, cudart, _ = bound(MLP)
    session.run({"x": np.zeros((1, 4), np.float32)})
    assert cudart.device
    del session
    gc.collect()

    assert ({}, {}, {}) == (cudart.device, cudart.pinned, cudart.streams)


class TestCaptureLock:
    """Captures, and the creation and destruction of sessions."""

    def test_loading_waits_only_for_captures(self):
        """Two sessions may load at once; they wait for a capture, and captures do not start meanwhile."""
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

    def test_captures_wait_for_runs_during_a_load(self):
        """No capture starts until runs that began during a load have ended: they may be a thread's first run."""
        lock, loading = CaptureLock(), contextlib.ExitStack()
        loading.enter_context(lock.changing_sessions())
        with lock.capturing() as may_capture:
            assert not may_capture
            loading.close()
            with lock.capturing() as may_capture:
                assert not may_capture
        with lock.capturing() as may_capture:
            assert may_capture

    def test_the_first_run_of_a_thread_waits_for_a_capture(self):
        """A thread's first run waits, since it creates handles, which may synchronize the device; later runs do not."""
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

    def test_an_unbound_run_on_a_gpu_waits_for_a_capture(self):
        """Strings have no address, so that the runtime allocates memory, which CUDA refuses during a capture."""
        session = OrtSession(open_session(text(parse(MLP)))._session, Device("cuda"), require_runtime().RunOptions)
        feeds = {"x": np.zeros((1, 4), np.float32)}
        with ThreadPoolExecutor(1) as pool:
            with CAPTURE_LOCK.capturing():
                answer = pool.submit(session.run, feeds)
                with pytest.raises(TimeoutError):
                    answer.result(0.05)
            answer.result(5)

    def test_sessions_freed_by_a_capturing_thread(self):
        """A capturing thread does not wait for itself when the garbage collector frees a session."""
        with CAPTURE_LOCK.capturing():
            session, cudart, _ = bound(TWO, most=4)
            del session
            gc.collect()

        assert "cudaSetDevice" in cudart.calls

    def test_sessions_are_destroyed_outside_of_captures(self):
        """A session is destroyed outside of captures, in whichever thread the last reference is dropped."""
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
    """A model with string inputs runs without binding."""
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
    """One captured graph for each bucket of batch sizes."""

    def test_outputs_equal_those_of_an_unbound_run(self):
        """Padding a batch to its bucket changes and adds no row."""
        plain, (session, *_) = open_session(text(parse(TWO))), bound(TWO, most=6)
        for rows in (1, 2, 3, 3, 6, 7):
            random = np.random.default_rng(rows)
            feeds = {"x": random.random((rows, 3), np.float32), "k": random.integers(-9, 9, rows)}
            want, got = plain.run(feeds), session.run(feeds)

            assert {name: array.tolist() for name, array in want.items()} == {
                name: array.tolist() for name, array in got.items()
            }

    def test_a_bucket_is_captured_once(self):
        """The first run of a bucket determines output shapes without a graph; all later ones use one graph."""
        session, _, asked = bound(TWO, most=4)
        for rows in (3, 4, 3):
            session.run({"x": np.zeros((rows, 3), np.float32), "k": np.zeros(rows, np.int64)})

        assert ["-1", "1", "1", "1"] == asked

    def test_no_capture_while_another_model_loads(self):
        """While another model loads, which takes seconds, a run is not captured; the next one is."""
        session, _, asked = bound(TWO, most=4)
        feeds = {"x": np.ones((4, 3), np.float32), "k": np.arange(4)}
        with CAPTURE_LOCK.changing_sessions():
            first = session.run(feeds)
        second = session.run(feeds)

        assert ["-1", "-1", "1"] == asked
        assert {name: array.tolist() for name, array in first.items()} == {
            name: array.tolist() for name, array in second.items()
        }

    def test_no_session_is_created_during_a_capture(self):
        """No session is created during a capture, when CUDA forbids synchronizing. Each thread captures once."""
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

    def test_a_failed_capture_names_the_option(self):
        """The error has the runtime's message and the option that enabled graphs."""
        session, *_ = bound(RESHAPE, most=2)
        with pytest.raises(InferenceError) as caught:
            session._binder._bindable.run(session._binder._bindable.session.io_binding(), "1")
        assert "--cuda-graphs" in caught.value.hint

    def test_batches_beyond_the_largest_bucket_are_not_captured(self):
        """Batches beyond the largest bucket run without a graph."""
        session, _, asked = bound(TWO, most=4)
        session.run({"x": np.zeros((5, 3), np.float32), "k": np.zeros(5, np.int64)})

        assert ["-1"] == asked

    def test_staging_does_not_affect_the_running_batch(self):
        """Two batches of one bucket have two graphs, so that copying one in cannot overwrite the other."""
        session, *_ = bound(TWO, most=1)
        runs = [session.stage({"x": np.full((1, 3), value, np.float32), "k": np.int64([value])}) for value in (-1, -2)]

        assert [[1], [2]] == [run(None)["b"].tolist() for run in runs]

    @pytest.mark.parametrize(("rows", "bucket"), [(0, None), (1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6), (7, None)])
    def test_buckets(self, rows, bucket):
        """Buckets are powers of two, the last one cut to the largest batch."""
        assert bucket == bucket_of(rows, 6)

    def test_padding_repeats_the_last_row(self):
        """A batch is padded with its last row, so that no new NaN can occur."""
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
    def test_models_that_can_be_replayed(self, inputs, outputs, can):
        """Every shape must follow from the number of rows."""
        assert can is can_replay([*map(parse_spec, inputs)], [*map(parse_spec, outputs)])


def test_this_machines_cpu_sessions_are_not_bound():
    """A CPU session passes its arrays without binding."""
    session = open_session(text(parse(MLP)))

    assert CPU == session.device
    assert session._binder is None
    assert list(itertools.chain(session.run({"x": np.zeros((1, 4), np.float32)}))) == ["y"]
