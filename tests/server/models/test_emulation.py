"""`--emulate`: on a CPU, the answers that a GPU would give, with its roundings and overflows."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from demi.accuracy.budget import Budget
from demi.errors import BundleError, DeviceError, PackageError
from demi.runtime.base import Device
from demi.server.models import emulation
from demi.server.models.loading import load_bundle
from demi.server.settings import ServeSettings
from demi.tensors import DType
from tests.server.bundles import GOLDEN_X, HALF, write_bundle
from tests.server.fakes import message
from tests.server.processes import run_serve, serving

EMULATE = ServeSettings(emulate=True)

SQUARE = """square (float[batch, 3] x) => (float[batch, 3] y)
<float[3] scale = {0.00390625, 0.00390625, 0.00390625}>
{ product = Mul(x, x)
  y = Mul(product, scale) }"""
"""y = x * x / 256: the product leaves FP16's range from 256 on, the output only from 4,096 on."""

SQUARE_IN_HALF = """square (float[batch, 3] x) => (float[batch, 3] y)
<float[3] scale = {0.00390625, 0.00390625, 0.00390625}>
{ half = Cast<to = 10>(x)
  half_scale = Cast<to = 10>(scale)
  product = Mul(half, half)
  scaled = Mul(product, half_scale)
  y = Cast<to = 1>(scaled) }"""

LARGE = np.float32([[300, 1, 2]])


@pytest.fixture
def square(tmp_path):
    """Write a bundle whose inner tensor overflows for inputs beyond 256."""
    return write_bundle(tmp_path / "models" / "square" / "1", SQUARE_IN_HALF, golden=GOLDEN_X, reference=SQUARE)


def test_an_inner_overflow_is_answered_as_on_a_gpu(square):
    """300 squared is infinite in FP16. ONNX Runtime on a CPU hides it: the output itself fits."""
    plain = load_bundle(square, ServeSettings(runtime="onnxruntime", precision="half"))
    found = load_bundle(square, EMULATE)

    assert np.isfinite(plain.session.run({"x": LARGE})["y"]).all()
    assert [np.inf, 2**-8, 2**-6] == found.session.run({"x": LARGE})["y"][0].tolist()
    assert "fp16-emulated" == found.precision


def test_inner_roundings_are_those_of_half(square):
    """Each product is rounded to FP16's 11 digits before it is scaled, bit for bit as NumPy rounds."""
    x = np.random.default_rng(0).uniform(-200, 200, (50, 3)).astype(np.float32)
    half = x.astype(np.float16)
    expected = (half * half) * np.float16(2**-8)

    assert np.array_equal(expected.astype(np.float32), load_bundle(square, EMULATE).session.run({"x": x})["y"])


def test_half_on_the_wire_stays_half(tmp_path):
    """A model with FP16 inputs and outputs keeps them for its clients."""
    write_bundle(tmp_path / "half" / "1", HALF)
    x = np.float16([[1, 2, 40000]])
    with serving(tmp_path, "--emulate", "--no-guard", "--precision", "auto", "--runtime", "auto") as server:
        body = message(x.tolist(), shape=[1, 3], datatype="FP16")
        answer = httpx.post(f"{server.url}/v2/models/half/infer", content=body).json()
        client = triton_grpc.InferenceServerClient(server.grpc)
        sent = triton_grpc.InferInput("x", [1, 3], "FP16")
        sent.set_data_from_numpy(x)
        result = client.infer("half", [sent])
        client.close()

    assert ("FP16", [2, 4, None]) == (answer["outputs"][0]["datatype"], answer["outputs"][0]["data"])
    assert np.float16 == result.as_numpy("y").dtype
    assert [[2, 4, np.inf]] == result.as_numpy("y").tolist()
    found = load_bundle(tmp_path / "half" / "1", EMULATE)
    assert (DType.FP16, DType.FP16) == (found.signature.inputs[0].dtype, found.signature.outputs[0].dtype)


def test_bf16_is_emulated_too(tmp_path):
    """ONNX Runtime has no BF16 on a CPU, and the emulator does not need it: 257 becomes 256."""
    text = SQUARE_IN_HALF.replace("to = 10", "to = 16")
    bundle = write_bundle_unrun(tmp_path / "b", text)
    found = load_bundle(bundle, EMULATE)

    assert "bf16-emulated" == found.precision
    assert 256.0 == found.session.run({"x": np.float32([[257, 1, 1]])})["y"][0, 0]


def write_bundle_unrun(path, text):
    """Write a BF16 bundle: its file is replaced after writing, since ONNX Runtime opens no BF16 model on a CPU."""
    from demi.bundles.bundle import write_manifest
    from demi.bundles.manifest import MODEL, decode
    from tests.server.bundles import serialized

    write_bundle(path, SQUARE, precision="bf16", golden=GOLDEN_X, reference=SQUARE)
    manifest = decode((path / "manifest.json").read_bytes(), str(path))
    (path / MODEL).write_bytes(serialized(text))
    write_manifest(path, manifest)
    return path


class TestServing:
    """A staging server."""

    def test_overflow_and_drift_are_seen(self, tmp_path):
        """The guard repairs the overflow, the shadow measures what a GPU would lose, and the answers say what computed
        them."""
        path = tmp_path / "models" / "square" / "1"
        write_bundle(path, SQUARE_IN_HALF, golden=GOLDEN_X, reference=SQUARE)
        with (
            serving(
                tmp_path / "models", "--emulate", "--shadow", "1", "--precision", "auto", "--runtime", "auto"
            ) as server,
            httpx.Client(base_url=server.url) as http,
        ):
            small = http.post("/v2/models/square/infer", content=message([[3, 1, 2]], shape=[1, 3]))
            large = http.post("/v2/models/square/infer", content=message(LARGE.tolist(), shape=[1, 3]))
            half = http.post(
                "/v2/models/square/infer",
                content=message(LARGE.tolist(), shape=[1, 3], parameters={"precision": "half"}),
            )
            metadata = http.get("/v2/models/square").json()["parameters"]
            accuracy = http.get("/v2/models/square/accuracy").json()

        assert ["fp16-emulated", "fp32", "fp16-emulated"] == [
            each.json()["parameters"]["precision"] for each in (small, large, half)
        ]
        assert 300 * 300 / 256 == large.json()["outputs"][0]["data"][0]
        assert half.json()["outputs"][0]["data"][0] is None, "infinite"
        assert "fp16-emulated" == metadata["precision"] == accuracy["precision"]
        assert 1 == accuracy["guard"]["reruns"]
        assert "overflow" in accuracy["vouches_for"]

    def test_openvino_is_refused(self, tmp_path):
        """The server ends with the reason before it listens."""
        write_bundle(tmp_path / "half" / "1", HALF)

        ended = run_serve(str(tmp_path), "--emulate", "--runtime", "openvino")

        assert 3 == ended.returncode
        assert "the emulator runs in ONNX Runtime" in ended.stderr


def test_a_device_that_computes_in_half(square):
    """A GPU needs no emulator."""
    with pytest.raises(DeviceError, match="computes in half itself"):
        load_bundle(square, ServeSettings(emulate=True, devices=(Device("cuda"),)))


def test_a_machine_without_onnx(square, monkeypatch):
    """The error names the extra to install."""
    monkeypatch.setattr(emulation, "NEEDED", "no_such_package")

    with pytest.raises(PackageError, match="no_such_package"):
        load_bundle(square, EMULATE)


def test_a_model_that_cannot_be_emulated(square, monkeypatch):
    """The reason of the process that writes the model is the error's."""
    monkeypatch.setattr(emulation, "WORK", "tests.server.models.test_emulation:refuse")

    with pytest.raises(BundleError, match="cannot be emulated: no reason at all"):
        load_bundle(square, EMULATE)


def refuse(mixed, target):
    """Write a reason in place of a model."""
    target.with_name(target.name + emulation.ERROR).write_text("no reason at all")


def test_settings_of_the_budget_are_kept(square):
    """The bundle's budget, ranges and batching are those of any other load."""
    found = load_bundle(square, EMULATE)

    assert Budget() == found.budget
    assert 8 == found.signature.max_batch_size
    assert frozenset({"y"}) == found.finite_outputs
