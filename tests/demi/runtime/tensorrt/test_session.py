"""Engines on a fake TensorRT, whose engines compute their ONNX model."""

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
    """Install a fake TensorRT with two GPUs, or one with a fault."""

    def be(cudart=None, **fields):
        return install(monkeypatch, FakeTrt(cudart or FakeCudart(), **fields))

    return be


@pytest.fixture
def opened(machine, tmp_path):
    """Open a model as an engine on a fake machine."""

    def open_it(model, shapes, graph_rows=0, **fields):
        trt = machine(**fields)
        data = text(parse(model))
        plain = open_session(data)
        plan = serialized_engine(trt, data, shapes, tmp_path)
        return open_engine(plan, (plain.inputs, plain.outputs), GPU, graph_rows), plain, trt

    return open_it


def rows(count, seed=0):
    return {"x": np.random.default_rng(seed).random((count, 4), np.float32)}


def test_outputs_equal_those_of_the_model(opened):
    """An engine has its model's outputs at every shape that it was built for."""
    session, plain, _ = opened(MLP, MLP_SHAPES)
    for count in (1, 8, 3):
        np.testing.assert_array_equal(plain.run(rows(count))["y"], session.run(rows(count))["y"])


def test_tensors_keep_the_names_of_their_axes(opened):
    """Specs are those of the bundle, since an engine has no names of axes."""
    session, plain, _ = opened(MLP, MLP_SHAPES)

    assert (plain.inputs, plain.outputs, GPU) == (session.inputs, session.outputs, session.device)


def test_outputs_by_name(opened):
    """All outputs are returned, or the requested ones."""
    session, *_ = opened(TWO, {"x": [(1, 3)] * 3, "k": [(1,)] * 3})
    feeds = {"x": np.float32([[1, 2, 3]]), "k": np.int64([-4])}

    assert ["b"] == list(session.run(feeds, ["b"]))
    assert ["a", "b"] == list(session.run(feeds))


def test_shapes_beyond_the_profile_are_refused(opened, caplog):
    """A batch that the engine was not built for is refused with the shapes that it takes, and uses no context.

    Nothing is logged, since this is the caller's error.
    """
    session, *_ = opened(MLP, MLP_SHAPES)
    for _ in range(3):
        with pytest.raises(TensorError, match=r"shape \[9, 4\], but the engine takes \[1, 4\] to \[8, 4\]"):
            session.run(rows(9))
    assert 1 == len(session.run(rows(1)))
    assert "" == caplog.text


def test_fixed_shapes(opened):
    """Fixed shapes need no profile."""
    fixed = "fixed (float[2, 3] x) => (float[2, 3] y) { y = Neg(x) }"
    session, *_ = opened(fixed, {"x": [(2, 3)] * 3})

    assert [[-1.0] * 3] * 2 == session.run({"x": np.ones((2, 3), np.float32)})["y"].tolist()


def test_arrays_are_checked_before_binding(opened):
    """Dtypes are checked before an address is passed."""
    session, *_ = opened(MLP, MLP_SHAPES)
    with pytest.raises(TensorError, match="float64"):
        session.run({"x": np.zeros((1, 4))})


@pytest.mark.parametrize(("x", "where"), [([0, 5, 6], [[1, 2]]), ([0, 0, 0], [[]])])
def test_sizes_that_depend_on_the_data(opened, x, where):
    """An output whose size depends on the data is allocated when its size is known, beside outputs of known sizes."""
    session, *_ = opened(GROWING, {"x": [(1,), (3,), (9,)]})
    for _ in range(2):
        answers = session.run({"x": np.float32(x)})

        assert (where, [-each for each in x]) == (answers["where"].tolist(), answers["y"].tolist())


def test_bfloat16_goes_in_and_out_as_its_bits(opened):
    """bfloat16, which NumPy does not have, is passed as uint16."""
    session, *_ = opened(BRAIN, {"x": [(2,)] * 3})
    bits = np.array([1.5, -2.0]).astype(ml_dtypes.bfloat16).view(np.uint16)

    assert DType.BF16 is session.inputs[0].dtype
    assert bits.tolist() == session.run({"x": bits})["y"].tolist()


def test_shape_tensors(opened):
    """Shape tensors are read and written in host memory."""
    session, *_ = opened(ON_HOST, {"host_in": [(2,)] * 3})

    assert [-1, -2] == session.run({"host_in": np.int64([1, 2])})["host_out"].tolist()


def test_staging_two_batches(opened):
    """Two batches may be staged at once, each in its own context."""
    session, plain, _ = opened(MLP, MLP_SHAPES)
    ready = [stage(session, rows(2, seed)) for seed in (1, 2)]

    for seed, run in ((2, ready[1]), (1, ready[0])):
        np.testing.assert_array_equal(plain.run(rows(2, seed))["y"], run(None)["y"])


def test_a_failed_run_has_a_reason_and_frees_its_context(opened):
    """The reason of a failed run is read from TensorRT's log and is part of the error."""
    session, *_ = opened(MLP, MLP_SHAPES, fails=["run"])
    for _ in range(3):
        with pytest.raises(InferenceError, match="TensorRT failed: CUDA error in the engine"):
            session.run(rows(1))


def test_inconsistent_shapes(opened):
    """An error that TensorRT's bindings raise becomes a DemiError with the reason from the log."""
    session, *_ = opened(MLP, MLP_SHAPES, fails=["shapes"])
    for _ in range(3):
        with pytest.raises(InferenceError, match="contradict each other: dimensions not compatible for Add"):
            session.run(rows(1))


def test_no_room_for_a_context(opened):
    """An engine that loads may still need more memory to run than there is."""
    session, *_ = opened(MLP, MLP_SHAPES, fails=["context"])
    with pytest.raises(InferenceError, match="out of memory for an execution context on cuda:1: out of memory"):
        session.run(rows(1))


def test_closed_sessions_free_their_memory(opened):
    """A closed session frees its contexts, buffers and streams."""
    session, _, trt = opened(MLP, MLP_SHAPES)
    session.run(rows(1))
    assert trt.cudart.device
    gc.disable()  # no reference cycle keeps it alive
    try:
        del session
    finally:
        gc.enable()

    assert ({}, {}, {}) == (trt.cudart.device, trt.cudart.pinned, trt.cudart.streams)


def test_contexts_are_created_outside_of_captures(opened):
    """Contexts are created and destroyed outside of captures, during which CUDA forbids allocating and synchronizing."""
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
        """A bucket's second run launches a graph; outputs are right and have only the requested rows."""
        session, plain, trt = opened(MLP, MLP_SHAPES, graph_rows=8)
        for count in (3, 4, 3, 8):
            np.testing.assert_array_equal(plain.run(rows(count))["y"], session.run(rows(count))["y"])

        assert (2, 2) == (trt.cudart.calls.count("cudaStreamBeginCapture"), trt.cudart.calls.count("cudaGraphLaunch"))

    def test_no_capture_while_another_model_loads(self, opened):
        """While another model loads, which takes seconds, a run is not captured; the next one is."""
        session, plain, trt = opened(MLP, MLP_SHAPES, graph_rows=8)
        with CAPTURE_LOCK.changing_sessions():
            np.testing.assert_array_equal(plain.run(rows(4))["y"], session.run(rows(4))["y"])
        assert "cudaStreamBeginCapture" not in trt.cudart.calls
        for _ in range(2):
            np.testing.assert_array_equal(plain.run(rows(4))["y"], session.run(rows(4))["y"])

        assert (1, 1) == (trt.cudart.calls.count("cudaStreamBeginCapture"), trt.cudart.calls.count("cudaGraphLaunch"))

    def test_every_graph_has_its_own_context(self, opened):
        """A context must not change while its graph is used: each graph has its own, and those of a slot share memory."""
        session, plain, trt = opened(MLP, MLP_SHAPES, graph_rows=8)
        for count in (4, 8, 2, 4, 8, 2, 1):
            np.testing.assert_array_equal(plain.run(rows(count))["y"], session.run(rows(count))["y"])

        assert 3 == trt.cudart.calls.count("cudaGraphLaunch")
        assert [1 << 20] == [len(block) for block in trt.cudart.device.values() if len(block) >= 1 << 20]

    def test_graphs_of_moved_buffers_are_captured_again(self, opened):
        """A graph whose buffers have moved is captured again."""
        wide = "wide (float[n, 400] x) => (float[n, 400] y) { y = Neg(x) }"
        session, _, trt = opened(wide, {"x": [(1, 400), (4, 400), (8, 400)]}, graph_rows=8)
        for seed, count in enumerate((1, 1, 8, 1, 1, 8)):
            x = np.random.default_rng(seed).random((count, 400), np.float32)
            np.testing.assert_array_equal(-x, session.run({"x": x})["y"])

        assert 3 == trt.cudart.calls.count("cudaStreamBeginCapture") == trt.cudart.calls.count("cudaGraphLaunch")

    def test_closed_sessions_free_their_graphs(self, opened):
        """A closed session frees graphs, shared memory and everything else."""
        session, _, trt = opened(MLP, MLP_SHAPES, graph_rows=8)
        for count in (1, 8, 1):
            session.run(rows(count))
        assert trt.cudart.graphs
        del session
        gc.collect()

        assert ({}, {}, {}, set()) == (trt.cudart.device, trt.cudart.pinned, trt.cudart.streams, trt.cudart.graphs)

    def test_runs_that_cannot_be_captured(self, opened, caplog):
        """A failed capture is logged once and not tried again."""
        session, plain, trt = opened(MLP, MLP_SHAPES, graph_rows=8, fails=["capture"])
        for _ in range(3):
            np.testing.assert_array_equal(plain.run(rows(2))["y"], session.run(rows(2))["y"])

        assert 1 == trt.cudart.calls.count("cudaStreamBeginCapture")
        assert set() == trt.cudart.graphs
        assert "no CUDA graphs for this engine" in caplog.text

    def test_sizes_that_depend_on_the_data_are_not_captured(self, opened):
        """Runs whose output sizes depend on the data are not captured, since addresses change."""
        session, _, trt = opened(GROWING, {"x": [(1,), (3,), (9,)]}, graph_rows=8)
        session.run({"x": np.float32([1, 0])})

        assert "cudaStreamBeginCapture" not in trt.cudart.calls


class TestOpening:
    """Loading engines, and refusing them."""

    def test_another_version(self, machine, tmp_path):
        """The version that built the engine is read from its first bytes, without loading it."""
        plan = serialized_engine(machine(version="10.16.1.11"), text(parse(MLP)), MLP_SHAPES, tmp_path)
        machine()
        with pytest.raises(
            DeviceError, match=r"TensorRT 11\.4\.0\.106 cannot load the engine \(built with 10\.16\.1\.11"
        ):
            open_engine(plan, ((), ()), GPU)

    def test_engines_share_one_log(self, opened, tmp_path):
        """TensorRT keeps the first logger that it gets, so that a second engine finds its errors there as well."""
        _, plain, trt = opened(MLP, MLP_SHAPES, fails=["run"])
        second = open_engine(
            serialized_engine(trt, text(parse(MLP)), MLP_SHAPES, tmp_path), (plain.inputs, plain.outputs), GPU
        )
        with pytest.raises(InferenceError, match="CUDA error in the engine"):
            second.run(rows(1))

        assert (1, 1) == (len(trt.loggers), trt.plugins)

    def test_a_reason_is_reported_once(self, machine):
        """An old error is not reported as the reason of a new one."""
        logger = logger_of(machine())
        logger.log(FakeTrt.ILogger.Severity.ERROR, "no memory")

        assert ["no memory", "TensorRT gave no reason"] == [why(logger), why(logger)]

    def test_an_older_engine_with_the_runtime_of_its_version(self, machine, tmp_path, monkeypatch):
        """A version-compatible engine needs the lean runtime of its version; the hint has the command to install it."""
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

    def test_bytes_that_are_not_an_engine(self, machine):
        """Bytes that are not an engine raise an error that says so."""
        machine()
        with pytest.raises(DeviceError, match="not an engine"):
            open_engine(b"garbage" * 9, ((), ()), GPU)

    def test_no_driver(self, machine):
        """Without a driver TensorRT returns a null pointer, which becomes an error with a hint."""
        machine(FakeCudart(gpus=0))
        with pytest.raises(DeviceError, match="no GPU or no driver was found") as caught:
            open_engine(b"", ((), ()), GPU)
        assert "nvidia-smi" in caught.value.hint

    def test_an_engine_of_another_model(self, opened, tmp_path):
        """The engine's tensors must be those of the manifest."""
        _, plain, trt = opened(MLP, MLP_SHAPES)
        plan = serialized_engine(trt, text(parse(TWO)), {"x": [(1, 3)] * 3, "k": [(1,)] * 3}, tmp_path)
        with pytest.raises(BundleError, match="the engine's inputs are k, x, but the manifest has x:FP32"):
            open_engine(plan, (plain.inputs, plain.outputs), GPU)

    def test_without_tensorrt(self, monkeypatch):
        """Without TensorRT the error names the extra."""
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(PackageError, match="`tensorrt`") as caught:
            require_tensorrt()
        assert "[tensorrt]" in caught.value.hint

    def test_too_old(self, machine):
        """TensorRT before 10.13 is refused, because its strong typing differs."""
        machine(version="10.9.0.34")
        with pytest.raises(PackageError, match=r"TensorRT 10\.9\.0\.34 is installed, but 10\.13 or newer is needed"):
            require_tensorrt()

    def test_the_version_of_a_plan(self):
        """The version is four numbers at a fixed offset, after a magic number."""
        assert "11.4.0.106" == engine_version(b"ftrt" + bytes(20) + bytes([11, 4, 0, 106]))
        assert engine_version(b"ftrt") is None
        assert engine_version(bytes(28)) is None


def test_layers_are_timed(opened):
    """The inspector's JSON is returned with each layer's mean time."""
    session, *_ = opened(MLP, MLP_SHAPES)
    information, times = session.time_layers(rows(4), 5)

    assert '"Name": "everything"' in information
    assert {"everything": 1.0} == times
