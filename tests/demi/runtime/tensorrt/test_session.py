"""Engines that run: on a stand-in for TensorRT whose engines compute what their ONNX model says."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from demi.errors import (
    BundleError,
    DeviceError,
    InferenceError,
    PackageError,
    TensorError,
)
from demi.runtime.base import Device, stage
from demi.runtime.cuda.capture_lock import CAPTURE_LOCK
from demi.runtime.onnxruntime.session import open_session
from demi.runtime.tensorrt.log import logger_of, why
from demi.runtime.tensorrt.session import engine_version, open_engine, require_tensorrt
from demi.tensors import DType
from tests.fake_cuda import FakeCudart
from tests.fake_trt import FakeTrt, install, serialized_engine
from tests.models import MLP, parse, text

GPU = Device("cuda", 1)
MLP_SHAPES = {"x": [(1, 4), (4, 4), (8, 4)]}
TWO = "two (float[n, 3] x, int64[n] k) => (float[n, 3] a, int64[n] b) { a = Neg(x) b = Abs(k) }"
GROWING = "growing (float[n] x) => (int64[1, m] where, float[n] y) { where = NonZero(x) y = Neg(x) }"
BRAIN = "brain (bfloat16[n] x) => (bfloat16[n] y) { y = Identity(x) }"
ON_HOST = "on_host (int64[n] host_in) => (int64[n] host_out) { host_out = Neg(host_in) }"


@pytest.fixture
def machine(monkeypatch):
    """Makes this a machine with TensorRT and two GPUs, or with something wrong about it."""

    def be(cudart=None, **fields):
        return install(monkeypatch, FakeTrt(cudart or FakeCudart(), **fields))

    return be


@pytest.fixture
def opened(machine, tmp_path):
    """Opens a model as an engine, on a machine of its own."""

    def open_it(model, shapes, graph_rows=0, **fields):
        trt = machine(**fields)
        data = text(parse(model))
        plain = open_session(data)
        plan = serialized_engine(trt, data, shapes, tmp_path)
        return open_engine(plan, (plain.inputs, plain.outputs), GPU, graph_rows), plain, trt

    return open_it


def rows(count, seed=0):
    return {"x": np.random.default_rng(seed).random((count, 4), np.float32)}


def test_answers_are_the_models(opened):
    """An engine answers as its model does, at every shape it was built for."""
    session, plain, _ = opened(MLP, MLP_SHAPES)
    for count in (1, 8, 3):
        np.testing.assert_array_equal(plain.run(rows(count))["y"], session.run(rows(count))["y"])


def test_tensors_keep_the_names_of_their_axes(opened):
    """Specs are those of the bundle; an engine itself knows no names."""
    session, plain, _ = opened(MLP, MLP_SHAPES)

    assert (plain.inputs, plain.outputs, GPU) == (session.inputs, session.outputs, session.device)


def test_outputs_by_name(opened):
    """All outputs, or those asked for."""
    session, *_ = opened(TWO, {"x": [(1, 3)] * 3, "k": [(1,)] * 3})
    feeds = {"x": np.float32([[1, 2, 3]]), "k": np.int64([-4])}

    assert ["b"] == list(session.run(feeds, ["b"]))
    assert ["a", "b"] == list(session.run(feeds))


def test_a_shape_beyond_the_profile_is_the_callers(opened, caplog):
    """A batch that the engine was not built for is refused, with the shapes it takes, and costs no context.

    The log, where errors are ours, says nothing.
    """
    session, *_ = opened(MLP, MLP_SHAPES)
    for _ in range(3):
        with pytest.raises(TensorError, match=r"shape \[9, 4\], but the engine takes \[1, 4\] to \[8, 4\]"):
            session.run(rows(9))
    assert 1 == len(session.run(rows(1)))
    assert "" == caplog.text


def test_shapes_that_are_fixed(opened):
    """A profile says nothing of them."""
    fixed = "fixed (float[2, 3] x) => (float[2, 3] y) { y = Neg(x) }"
    session, *_ = opened(fixed, {"x": [(2, 3)] * 3})

    assert [[-1.0] * 3] * 2 == session.run({"x": np.ones((2, 3), np.float32)})["y"].tolist()


def test_arrays_that_do_not_fit_are_never_read_as_something_else(opened):
    """Dtypes are checked before an address is handed over."""
    session, *_ = opened(MLP, MLP_SHAPES)
    with pytest.raises(TensorError, match="float64"):
        session.run({"x": np.zeros((1, 4))})


@pytest.mark.parametrize(("x", "where"), [([0, 5, 6], [[1, 2]]), ([0, 0, 0], [[]])])
def test_sizes_that_depend_on_the_data(opened, x, where):
    """Such an output gets its room when its size is known, beside outputs of known sizes."""
    session, *_ = opened(GROWING, {"x": [(1,), (3,), (9,)]})
    for _ in range(2):
        answers = session.run({"x": np.float32(x)})

        assert (where, [-each for each in x]) == (answers["where"].tolist(), answers["y"].tolist())


def test_bfloat16_goes_in_and_out_as_its_bits(opened):
    """NumPy has no bfloat16: its bits travel as uint16."""
    session, *_ = opened(BRAIN, {"x": [(2,)] * 3})
    bits = np.array([1.5, -2.0]).astype(ml_dtypes.bfloat16).view(np.uint16)

    assert DType.BF16 is session.inputs[0].dtype
    assert bits.tolist() == session.run({"x": bits})["y"].tolist()


def test_tensors_that_tensorrt_keeps_on_the_host(opened):
    """Shapes are read and written in host memory."""
    session, *_ = opened(ON_HOST, {"host_in": [(2,)] * 3})

    assert [-1, -2] == session.run({"host_in": np.int64([1, 2])})["host_out"].tolist()


def test_the_next_batch_is_copied_while_one_waits_for_its_run(opened):
    """Two batches may be staged at once, each in a context of its own."""
    session, plain, _ = opened(MLP, MLP_SHAPES)
    ready = [stage(session, rows(2, seed)) for seed in (1, 2)]

    for seed, run in ((2, ready[1]), (1, ready[0])):
        np.testing.assert_array_equal(plain.run(rows(2, seed))["y"], run(None)["y"])


def test_a_failing_run_says_why_and_uses_up_nothing(opened):
    """TensorRT says False; the reason is in its log, and goes into the error."""
    session, *_ = opened(MLP, MLP_SHAPES, fails=["run"])
    for _ in range(3):
        with pytest.raises(InferenceError, match="TensorRT failed: CUDA error in the engine"):
            session.run(rows(1))


def test_shapes_that_do_not_go_together(opened):
    """TensorRT's bindings raise what no DemiError is, with a number; the reason is in the log."""
    session, *_ = opened(MLP, MLP_SHAPES, fails=["shapes"])
    for _ in range(3):
        with pytest.raises(InferenceError, match="contradict each other: dimensions not compatible for Add"):
            session.run(rows(1))


def test_no_room_for_a_context(opened):
    """An engine that loads may still be too large to run."""
    session, *_ = opened(MLP, MLP_SHAPES, fails=["context"])
    with pytest.raises(InferenceError, match="out of memory for an execution context on cuda:1: out of memory"):
        session.run(rows(1))


def test_sessions_end_without_leaving_memory(opened):
    """When a session goes, its contexts, buffers and streams go with it."""
    session, _, trt = opened(MLP, MLP_SHAPES)
    session.run(rows(1))
    assert trt.cudart.device
    gc.disable()  # no cycle keeps it
    try:
        del session
    finally:
        gc.enable()

    assert ({}, {}, {}) == (trt.cudart.device, trt.cudart.pinned, trt.cudart.streams)


def test_contexts_come_and_go_while_nothing_is_recorded(opened):
    """They allocate and synchronize, which CUDA forbids while another thread records."""
    session, *_ = opened(MLP, MLP_SHAPES)
    with ThreadPoolExecutor(1) as pool:
        with CAPTURE_LOCK.capturing():
            answer = pool.submit(session.run, rows(1))
            with pytest.raises(TimeoutError):
                answer.result(0.05)
        assert (1, 2) == answer.result(5)["y"].shape


class TestGraphs:
    """CUDA graphs of engines."""

    def test_later_runs_are_replayed(self, opened):
        """A bucket's second run launches a graph; answers stay right and have only the rows that were asked for."""
        session, plain, trt = opened(MLP, MLP_SHAPES, graph_rows=8)
        for count in (3, 4, 3, 8):
            np.testing.assert_array_equal(plain.run(rows(count))["y"], session.run(rows(count))["y"])

        assert (2, 2) == (trt.cudart.calls.count("cudaStreamBeginCapture"), trt.cudart.calls.count("cudaGraphLaunch"))

    def test_nothing_is_recorded_while_another_model_loads(self, opened):
        """That takes seconds: the run is not held up, and the next one is recorded."""
        session, plain, trt = opened(MLP, MLP_SHAPES, graph_rows=8)
        with CAPTURE_LOCK.changing_sessions():
            np.testing.assert_array_equal(plain.run(rows(4))["y"], session.run(rows(4))["y"])
        assert "cudaStreamBeginCapture" not in trt.cudart.calls
        for _ in range(2):
            np.testing.assert_array_equal(plain.run(rows(4))["y"], session.run(rows(4))["y"])

        assert (1, 1) == (trt.cudart.calls.count("cudaStreamBeginCapture"), trt.cudart.calls.count("cudaGraphLaunch"))

    def test_every_graph_has_a_context_that_nothing_else_touches(self, opened):
        """TensorRT lets no context change whose graph is still launched; those of a slot share their memory."""
        session, plain, trt = opened(MLP, MLP_SHAPES, graph_rows=8)
        for count in (4, 8, 2, 4, 8, 2, 1):
            np.testing.assert_array_equal(plain.run(rows(count))["y"], session.run(rows(count))["y"])

        assert 3 == trt.cudart.calls.count("cudaGraphLaunch")
        assert [1 << 20] == [len(block) for block in trt.cudart.device.values() if len(block) >= 1 << 20]

    def test_buffers_that_grow_are_recorded_anew(self, opened):
        """A graph whose buffers have moved is never launched again."""
        wide = "wide (float[n, 400] x) => (float[n, 400] y) { y = Neg(x) }"
        session, _, trt = opened(wide, {"x": [(1, 400), (4, 400), (8, 400)]}, graph_rows=8)
        for seed, count in enumerate((1, 1, 8, 1, 1, 8)):
            x = np.random.default_rng(seed).random((count, 400), np.float32)
            np.testing.assert_array_equal(-x, session.run({"x": x})["y"])

        assert 3 == trt.cudart.calls.count("cudaStreamBeginCapture") == trt.cudart.calls.count("cudaGraphLaunch")

    def test_nothing_is_left(self, opened):
        """Graphs, shared memory and all else go with the session."""
        session, _, trt = opened(MLP, MLP_SHAPES, graph_rows=8)
        for count in (1, 8, 1):
            session.run(rows(count))
        assert trt.cudart.graphs
        del session
        gc.collect()

        assert ({}, {}, {}, set()) == (trt.cudart.device, trt.cudart.pinned, trt.cudart.streams, trt.cudart.graphs)

    def test_what_cannot_be_recorded_runs_without(self, opened, caplog):
        """A recording that fails is told once and never tried again."""
        session, plain, trt = opened(MLP, MLP_SHAPES, graph_rows=8, fails=["capture"])
        for _ in range(3):
            np.testing.assert_array_equal(plain.run(rows(2))["y"], session.run(rows(2))["y"])

        assert 1 == trt.cudart.calls.count("cudaStreamBeginCapture")
        assert set() == trt.cudart.graphs
        assert "no CUDA graphs for this engine" in caplog.text

    def test_sizes_that_depend_on_the_data_are_not_recorded(self, opened):
        """There, nothing stays in its place."""
        session, _, trt = opened(GROWING, {"x": [(1,), (3,), (9,)]}, graph_rows=8)
        session.run({"x": np.float32([1, 0])})

        assert "cudaStreamBeginCapture" not in trt.cudart.calls


class TestOpening:
    """Loading an engine, and every reason why not."""

    def test_another_version(self, machine, tmp_path):
        """The version that built the engine is read from its first bytes, without loading it."""
        plan = serialized_engine(machine(version="10.16.1.11"), text(parse(MLP)), MLP_SHAPES, tmp_path)
        machine()
        with pytest.raises(
            DeviceError, match=r"TensorRT 11\.4\.0\.106 cannot load the engine \(built with 10\.16\.1\.11"
        ):
            open_engine(plan, ((), ()), GPU)

    def test_all_write_to_one_log(self, opened, tmp_path):
        """TensorRT knows one log, the first that it was given: an engine that came later finds its reasons there."""
        _, plain, trt = opened(MLP, MLP_SHAPES, fails=["run"])
        second = open_engine(
            serialized_engine(trt, text(parse(MLP)), MLP_SHAPES, tmp_path), (plain.inputs, plain.outputs), GPU
        )
        with pytest.raises(InferenceError, match="CUDA error in the engine"):
            second.run(rows(1))

        assert (1, 1) == (len(trt.loggers), trt.plugins)

    def test_a_reason_is_told_once(self, machine):
        """What went wrong before is no reason for what goes wrong later."""
        logger = logger_of(machine())
        logger.log(FakeTrt.ILogger.Severity.ERROR, "no memory")

        assert ["no memory", "TensorRT gave no reason"] == [why(logger), why(logger)]

    def test_an_older_engine_with_the_runtime_of_its_version(self, machine, tmp_path, monkeypatch):
        """An engine that newer versions may run needs the lean runtime of its own; the hint says how to get it."""
        old = machine(version="10.16.1.11")
        plan = serialized_engine(old, text(parse(MLP)), MLP_SHAPES, tmp_path)
        plain = open_session(text(parse(MLP)))
        machine()
        with pytest.raises(DeviceError) as caught:
            open_engine(plan, (plain.inputs, plain.outputs), GPU)
        assert "pip install tensorrt-lean==10.16.1.11" in caught.value.hint

        (tmp_path / "tensorrt_lean_libs").mkdir()
        (tmp_path / "tensorrt_lean_libs" / "libnvinfer_lean.so.10").write_text("10.16.1.11")
        monkeypatch.syspath_prepend(tmp_path)
        session = open_engine(plan, (plain.inputs, plain.outputs), GPU)
        np.testing.assert_array_equal(plain.run(rows(2))["y"], session.run(rows(2))["y"])

    def test_bytes_that_are_no_engine(self, machine):
        """They are called that."""
        machine()
        with pytest.raises(DeviceError, match="not an engine"):
            open_engine(b"garbage" * 9, ((), ()), GPU)

    def test_no_driver(self, machine):
        """TensorRT's null pointer becomes words."""
        machine(FakeCudart(gpus=0))
        with pytest.raises(DeviceError, match="no GPU or no driver was found") as caught:
            open_engine(b"", ((), ()), GPU)
        assert "nvidia-smi" in caught.value.hint

    def test_an_engine_of_another_model(self, opened, tmp_path):
        """Its tensors must be those of the manifest."""
        _, plain, trt = opened(MLP, MLP_SHAPES)
        plan = serialized_engine(trt, text(parse(TWO)), {"x": [(1, 3)] * 3, "k": [(1,)] * 3}, tmp_path)
        with pytest.raises(BundleError, match="the engine's inputs are k, x, but the manifest has x:FP32"):
            open_engine(plan, (plain.inputs, plain.outputs), GPU)

    def test_without_tensorrt(self, monkeypatch):
        """The extra that brings it is named."""
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(PackageError, match="`tensorrt`") as caught:
            require_tensorrt()
        assert "[tensorrt]" in caught.value.hint

    def test_too_old(self, machine):
        """Before 10.13, strong typing is another matter."""
        machine(version="10.9.0.34")
        with pytest.raises(PackageError, match=r"TensorRT 10\.9\.0\.34 is installed, but 10\.13 or newer is needed"):
            require_tensorrt()

    def test_the_version_of_a_plan(self):
        """Four numbers at a fixed place, behind a magic word."""
        assert "11.4.0.106" == engine_version(b"ftrt" + bytes(20) + bytes([11, 4, 0, 106]))
        assert engine_version(b"ftrt") is None
        assert engine_version(bytes(28)) is None


def test_layers_are_timed(opened):
    """The inspector's JSON, and each layer's mean time."""
    session, *_ = opened(MLP, MLP_SHAPES)
    information, times = session.time_layers(rows(4), 5)

    assert '"Name": "everything"' in information
    assert {"everything": 1.0} == times
