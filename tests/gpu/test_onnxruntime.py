"""ONNX Runtime on a GPU: correct outputs, no silent fallback to the CPU, and half kernels."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from demi.accuracy.compare import compare, relative_l2
from demi.bundles.bundle import open_bundle
from demi.errors import DeviceError, TensorError
from demi.exporter.planning.measured_costs import node_times
from demi.runtime.base import CPU, Device, stage
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.capability import check_gpu, missing_libraries
from demi.runtime.onnxruntime.cuda_graphs import GraphBinder
from demi.runtime.onnxruntime.session import SessionSettings, open_session
from tests.gpu.conftest import GPU
from tests.models import MLP, OVERFLOW, SHAPED, in_half, parse, prepared, text

PRODUCT = "product (float[n, 512] x, float[512, 512] w) => (float[n, 512] y) { y = MatMul(x, w) }"
BRAIN = "brain (bfloat16[n] x) => (bfloat16[n] y) { y = Add(x, x) }"
GROWING = "growing (float[n] x) => (int64[1, m] where) { where = NonZero(x) }"


def rows(count, seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)}


def test_the_gpu_is_described_and_fit():
    """The GPU has a name, capability, driver and memory, and every library is found."""
    gpu = Cuda(GPU).describe()
    check_gpu(gpu, GPU)

    assert gpu.name
    assert gpu.memory_bytes > 1 << 30
    assert [] == missing_libraries()


def test_outputs_equal_those_of_the_cpu():
    """Outputs equal those of the CPU at any batch size, one after the other, with the same buffers."""
    on_cpu, on_gpu = (open_session(text(parse(MLP)), device) for device in (CPU, GPU))
    for count in (1, 7, 64, 3):
        np.testing.assert_allclose(on_cpu.run(rows(count))["y"], on_gpu.run(rows(count))["y"], rtol=1e-5, atol=1e-6)


def test_fp32_without_tf32():
    """FP32 products are computed in FP32; with TF32 they would be off by about 1e-3."""
    random = np.random.default_rng(0)
    w = random.standard_normal((512, 512)).astype(np.float32)
    x = random.standard_normal((256, 512)).astype(np.float32)
    want = x.astype(np.float64) @ w.astype(np.float64)

    assert 1e-5 > relative_l2(want, open_session(text(parse(PRODUCT)), GPU).run({"x": x, "w": w})["y"])


def test_half_overflows_here():
    """An overflow that the CPU hides is real on the GPU: 102,400 between two half nodes is infinite."""
    model = text(parse(in_half(OVERFLOW)))
    x = np.float16([1024, 1])

    assert np.isfinite(open_session(model).run({"x": x})["y"]).all()
    assert [True, False] == np.isinf(open_session(model, GPU).run({"x": x})["y"]).tolist()


def test_a_mixed_bundle_is_within_its_budget(bundle):
    """The error that the emulator predicted holds on the device."""
    found = open_bundle(bundle)
    session = open_session(found.model_path, GPU)
    golden = found.golden()

    assert [] == session.nodes_on_cpu()
    assert compare(golden.outputs, [session.run(feeds) for feeds in golden.inputs], found.manifest.budget)


def test_bfloat16_goes_in_and_out():
    """bfloat16 is bound by address, as its bits."""
    bits = np.array([1.5, -2.0]).astype(ml_dtypes.bfloat16).view(np.uint16)
    answer = open_session(text(parse(BRAIN)), GPU).run({"x": bits})["y"]

    assert [3.0, -4.0] == answer.view(ml_dtypes.bfloat16).astype(float).tolist()


@pytest.mark.parametrize(("x", "where"), [([0, 5, 0, 6], [[1, 3]]), ([0, 0], [[]])])
def test_sizes_that_depend_on_the_data(x, where):
    """Outputs whose size depends on the data are returned at any size."""
    assert where == open_session(text(parse(GROWING)), GPU).run({"x": np.float32(x)})["where"].tolist()


def test_staging_two_batches():
    """The second batch is copied before the first has run."""
    session = open_session(text(parse(MLP)), GPU)
    ready = [stage(session, rows(5, seed)) for seed in (1, 2)]
    answers = [run(None)["y"] for run in ready]

    for seed, answer in zip((1, 2), answers, strict=True):
        np.testing.assert_array_equal(session.run(rows(5, seed))["y"], answer)


def test_outputs_with_cuda_graphs():
    """Replayed graphs, with padded batches, have the same outputs at every size, in any order."""
    plain = open_session(text(parse(MLP)), GPU)
    session = open_session(text(parse(MLP)), GPU, SessionSettings(graph_rows=8))
    assert isinstance(session._binder, GraphBinder)
    for seed, count in enumerate((3, 4, 8, 3, 1, 9, 5, 3)):
        np.testing.assert_allclose(
            plain.run(rows(count, seed))["y"], session.run(rows(count, seed))["y"], rtol=1e-5, atol=1e-6
        )


def test_captures_do_not_affect_other_threads():
    """While one session captures its graphs, another one allocates, runs, and is loaded."""
    plain = open_session(text(parse(MLP)), GPU)
    graphs = open_session(text(parse(MLP)), GPU, SessionSettings(graph_rows=64))

    def grow(count):
        return open_session(text(parse(MLP)), GPU).run(rows(count)) and plain.run(rows(1000 * count))

    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(grow, count) for count in range(1, 20)]
        recorded = [pool.submit(graphs.run, rows(count)) for count in (1, 2, 3, 5, 9, 17, 33, 1, 2, 33)]
        assert all(found.result() for found in others)
    for found, count in zip(recorded, (1, 2, 3, 5, 9, 17, 33, 1, 2, 33), strict=True):
        np.testing.assert_allclose(plain.run(rows(count))["y"], found.result()["y"], rtol=1e-5, atol=1e-6)


def test_wrong_dtypes_are_refused():
    """Arrays of another type are refused."""
    with pytest.raises(TensorError):
        open_session(text(parse(MLP)), GPU).run({"x": np.zeros((1, 4))})


def test_missing_gpu():
    """The error has the device's index and the number of GPUs."""
    with pytest.raises(DeviceError, match="`cuda:99` was requested, but this machine has"):
        open_session(text(parse(MLP)), Device("cuda", 99))


def test_settings_are_accepted():
    """Every option is known to this ONNX Runtime: with an unknown one it would create a CPU session."""
    settings = SessionSettings(memory_bytes=1 << 30, nhwc=True, strict_device=True)

    assert GPU == open_session(text(parse(MLP)), GPU, settings).device


def test_shape_nodes_are_accepted():
    """ONNX Runtime runs shape nodes on the CPU on purpose: a strict session accepts the model and runs it."""
    session = open_session(text(parse(SHAPED)), GPU, SessionSettings(strict_device=True))
    x = np.arange(24, dtype=np.float32).reshape(4, 6)

    assert [] == session.unexpected_on_cpu(text(parse(SHAPED)))
    np.testing.assert_array_equal(x[:3], session.run({"x": x})["y"])


def test_closed_sessions_free_their_memory():
    """A closed session frees all of its buffers."""
    cuda = Cuda(GPU)
    open_session(text(parse(MLP)), GPU).run(rows(1))
    gc.collect()
    before = cuda.memory()[0]
    session = open_session(text(parse(PRODUCT)), GPU)
    session.run({"x": np.zeros((4096, 512), np.float32), "w": np.zeros((512, 512), np.float32)})
    del session
    gc.collect()

    assert cuda.memory()[0] >= before - (256 << 20)


def test_nodes_run_in_half():
    """The profile of a half model shows half kernels, whereas a CPU would compute in FP32."""
    model = prepared(in_half(MLP))
    found = node_times(model, {"x": rows(4)["x"].astype(np.float16)}, GPU)

    assert all(each.in_half for name, each in found.items() if name in ("first", "bias", "act", "second"))
