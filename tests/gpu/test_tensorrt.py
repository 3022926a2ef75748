"""TensorRT on a GPU: engines are built, verified, sealed and served, and compute in the types of the plan."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import ml_dtypes
import numpy as np
import pytest

from demi.accuracy.compare import compare
from demi.bundles.bundle import open_bundle
from demi.bundles.manifest import BatchSpec
from demi.cli.main import main
from demi.engines import record as engine_records
from demi.engines.key import DEFAULT, read_key
from demi.engines.record import read_engine
from demi.errors import ConversionError, DeviceError, TensorError
from demi.exporter.tensorrt.build import build_engine
from demi.exporter.tensorrt.builder import EngineOptions, build_engine_bytes
from demi.exporter.tensorrt.layer_times import engine_node_times
from demi.exporter.tensorrt.progress import Progress
from demi.exporter.tensorrt.shapes import ShapeOptions, shape_ranges
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.onnxruntime.session import open_session
from demi.runtime.tensorrt.session import TrtSession, engine_version, open_engine, require_tensorrt
from tests.calibration.bundles import export
from tests.gpu.conftest import GPU
from tests.gpu.test_serving import ask
from tests.models import LAYER_NORM, MLP, in_half, parse, prepared, text
from tests.server.processes import serving

TWO = "two (float[n, 3] x, int64[n] k) => (float[n, 3] a, int64[n] b) { a = Neg(x) b = Add(k, k) }"
GROWING = "growing (float[n] x) => (int64[1, m] where) { where = NonZero(x) }"
WIDE = """
wide (float[batch, 8192] x) => (float[batch, 1] y) <float[8192, 1] w = {%s}>
{ [product] y = MatMul(x, w) }
"""
BRAIN = "brain (bfloat16[n, 4] x) => (bfloat16[n, 4] y) { y = Add(x, x) }"


def built(tmp_path, model, rows=8, **options):
    """Return a model's engine of up to this many rows as a session, and its ONNX Runtime session on the CPU."""
    (tmp_path / "m.onnx").write_bytes(text(parse(model)))
    plain = open_session(text(parse(model)))
    settings = EngineOptions(**options)
    ranges = shape_ranges(plain.inputs, BatchSpec(free=True, max_size=rows), settings.shapes)
    Cuda(GPU).use()
    trt = require_tensorrt()
    engine_bytes = build_engine_bytes(trt, tmp_path / "m.onnx", ranges, settings, Cuda(GPU).describe(), Progress())
    assert engine_version(engine_bytes) is not None
    return open_engine(engine_bytes, (plain.inputs, plain.outputs), GPU), plain


def rows(count, seed=0, columns=4):
    return {"x": np.random.default_rng(seed).standard_normal((count, columns)).astype(np.float32)}


def test_outputs_equal_those_of_onnxruntime(tmp_path):
    """Without TF32 FP32 outputs agree to rounding."""
    session, plain = built(tmp_path, MLP)
    for count in (1, 8, 3):
        np.testing.assert_allclose(plain.run(rows(count))["y"], session.run(rows(count))["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [MLP, LAYER_NORM])
def test_half_models(tmp_path, model):
    """Half inputs and outputs are compared with half storage on the CPU."""
    session, plain = built(tmp_path, in_half(model))
    feeds = {"x": rows(4)["x"].astype(np.float16)}

    np.testing.assert_allclose(
        plain.run(feeds)["y"].astype(np.float32), session.run(feeds)["y"].astype(np.float32), rtol=2e-2, atol=2e-2
    )


def test_outputs_by_name_and_integers(tmp_path):
    """64-bit integers are passed unchanged."""
    session, _ = built(tmp_path, TWO)
    feeds = {"x": np.float32([[1, 2, 3]]), "k": np.int64([-(2**40)])}

    assert {"b": [-(2**41)]} == {name: array.tolist() for name, array in session.run(feeds, ["b"]).items()}


def test_bfloat16_goes_in_and_out(tmp_path):
    """bfloat16 is passed as its bits."""
    plain_specs = built_bfloat16(tmp_path)
    bits = np.full((2, 4), 1.5).astype(ml_dtypes.bfloat16).view(np.uint16)
    answer = plain_specs.run({"x": bits})["y"]

    assert np.all(answer.view(ml_dtypes.bfloat16).astype(float) == 3.0)


def built_bfloat16(tmp_path) -> TrtSession:
    """Return a bfloat16 engine; its specs come from a float16 twin, since the CPU cannot load the model itself."""
    twin = open_session(text(parse(BRAIN.replace("bfloat16", "float16"))))
    (tmp_path / "b.onnx").write_bytes(text(parse(BRAIN)))
    ranges = shape_ranges(twin.inputs, BatchSpec(free=True, max_size=4), ShapeOptions())
    trt = require_tensorrt()
    engine_bytes = build_engine_bytes(
        trt, tmp_path / "b.onnx", ranges, EngineOptions(), Cuda(GPU).describe(), Progress()
    )
    return open_engine(engine_bytes, (twin.inputs, twin.outputs), GPU)


@pytest.mark.parametrize(("x", "where"), [([0, 5, 0, 6], [[1, 3]]), ([0, 0, 0, 0], [[]])])
def test_sizes_that_depend_on_the_data(tmp_path, x, where):
    """Outputs whose size depends on the data are allocated while the engine runs."""
    session, _ = built(tmp_path, GROWING)
    for _ in range(2):
        assert where == session.run({"x": np.float32(x)})["where"].tolist()


def test_a_shape_beyond_the_profile(tmp_path):
    """The error has the shapes that the engine takes, and the next request is answered."""
    session, _ = built(tmp_path, MLP)
    with pytest.raises(TensorError, match=r"the engine takes \[1, 4\] to \[8, 4\]"):
        session.run(rows(9))
    assert (8, 2) == session.run(rows(8))["y"].shape


def test_outputs_with_cuda_graphs(tmp_path):
    """Replayed graphs have the same outputs in two contexts at every size."""
    (tmp_path / "m.onnx").write_bytes(text(parse(MLP)))
    session, plain = built(tmp_path, MLP)
    graphs = TrtSession(
        session._engine, session._trt, session._cuda, session._logger, (plain.inputs, plain.outputs), graph_rows=8
    )
    for seed, count in enumerate((3, 4, 8, 3, 1, 5, 3)):
        np.testing.assert_allclose(
            session.run(rows(count, seed))["y"], graphs.run(rows(count, seed))["y"], rtol=1e-5, atol=1e-6
        )


def test_an_engine_for_a_bundle(bundle, capsys):
    """The command builds, verifies, times and seals an engine; the layers are named, and most of them write half."""
    assert 0 == main(["export", "--tensorrt", str(bundle)])
    found = open_bundle(bundle)
    engine = read_engine(found, read_key(DEFAULT))
    layers = json.loads((found.path / "engine" / "layers.json").read_text())

    assert "error of y" in capsys.readouterr().out
    assert engine.record.tensorrt == require_tensorrt().__version__
    assert layers["layers"]
    assert layers["total_ms"] > 0


@pytest.mark.parametrize("flags", [(), ("--cuda-graphs",)])
def test_an_engine_is_served(bundle, flags):
    """`--engine require` serves the engine, within the bundle's budget."""
    assert 0 == main(["export", "--tensorrt", str(bundle)])
    found = open_bundle(bundle)
    golden = found.golden()
    with serving(bundle.parent, "--device", "cuda", "--engine", "require", *flags) as server:
        answers = [{"y": ask(server.url, feeds["x"]).astype(np.float32)} for feeds in golden.inputs]
        assert server.said("TensorRT")
        assert 200 == httpx.get(server.url + "/v2/health/ready").status_code

    assert compare(golden.outputs, answers, found.manifest.budget)


def test_sums_in_single(tmp_path):
    """With FP32 accumulation, partial sums beyond half's range are harmless: 30 * 4,096 - 30 * 4,096 is 0."""
    weights = ", ".join(["30.0"] * 4096 + ["-30.0"] * 4096)
    (tmp_path / "wide.onnx").write_bytes(text(parse(WIDE % weights)))
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((1, 8192), np.float32))
    assert 0 == main(
        [
            *("export", str(tmp_path / "wide.onnx"), "--no-calibrate", "--sample", str(tmp_path / "x.npz")),
            *("--budget", "relative_l2=1", "-o", str(tmp_path / "wide"), "--tensorrt", "--fp32-accumulate"),
        ]
    )
    bundle = open_bundle(tmp_path / "wide")
    engine = read_engine(bundle, read_key(DEFAULT))
    session = open_engine(engine.plan, (bundle.manifest.inputs, bundle.manifest.outputs), GPU)

    assert engine.record.options["fp32_accumulate"]
    assert [[0.0]] == session.run({"x": np.ones((1, 8192), np.float32)})["y"].tolist()


def test_options_are_accepted(tmp_path):
    """This TensorRT accepts every option, and the timing cache is stored and reused."""
    bundle = open_bundle(export(tmp_path))
    for hardware in engine_records.HARDWARE:
        options = EngineOptions(
            hardware=hardware, level=1, workspace_bytes=1 << 28, timing_cache=tmp_path / "timing.cache"
        )
        assert build_engine(bundle, options).record.hardware == hardware
    assert (tmp_path / "timing.cache").stat().st_size > 0


def test_nodes_are_timed_by_their_layers():
    """Layers name their nodes: every timed node exists in the model, and the sum is positive."""
    found = engine_node_times(prepared(MLP), rows(64), GPU)

    assert {"first", "second"} <= found.keys() <= {"first", "bias", "act", "second"}
    assert 0 < sum(each.seconds for each in found.values()) < 0.1


def test_unsupported_operator(tmp_path):
    """The error of an unsupported operator names the node."""
    model = "odd (float[n] x) => (float[n] y) { [strange] y = com.example.Odd(x) }"
    proto = parse('<ir_version: 8, opset_import: ["" : 18, "com.example" : 1]>\n' + model)
    (tmp_path / "m.onnx").write_bytes(text(proto))
    with pytest.raises(ConversionError, match="strange"):
        build_engine_bytes(
            require_tensorrt(), tmp_path / "m.onnx", {}, EngineOptions(), Cuda(GPU).describe(), Progress()
        )


def test_ctrl_c_stops_a_build(tmp_path):
    """A cancelled build raises an error and writes nothing."""
    (tmp_path / "m.onnx").write_bytes(text(parse(MLP)))
    plain = open_session(text(parse(MLP)))
    ranges = shape_ranges(plain.inputs, BatchSpec(free=True, max_size=8), ShapeOptions())
    progress = Progress()
    progress.cancelled = True
    with pytest.raises(ConversionError, match="could not build"):
        build_engine_bytes(
            require_tensorrt(), tmp_path / "m.onnx", ranges, EngineOptions(), Cuda(GPU).describe(), progress
        )


def test_an_engine_of_another_version(tmp_path):
    """An engine of another version is refused, and the error has that version."""
    session, plain = built(tmp_path, MLP)
    plan = bytearray(bytes(session._engine.serialize()))
    plan[24:28] = bytes([9, 8, 7, 6])
    with pytest.raises(DeviceError, match=r"built with 9\.8\.7\.6"):
        open_engine(bytes(plan), (plain.inputs, plain.outputs), GPU)


def test_a_record_of_another_gpu_is_not_used(bundle):
    """`auto` falls back to ONNX Runtime and logs the reason."""
    assert 0 == main(["export", "--tensorrt", str(bundle)])
    found = open_bundle(bundle)
    engine = read_engine(found, read_key(DEFAULT))
    engine_records.write_engine(found, replace(engine.record, gpu="Another GPU"), engine.plan, read_key(DEFAULT))
    with serving(bundle.parent, "--device", "cuda") as server:
        assert server.said("built for Another GPU")
        assert (6, 2) == ask(server.url, np.zeros((6, 4), np.float32)).shape
