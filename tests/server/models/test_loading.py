"""Loading a bundle into a warm session, and every error on the way."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from demi.bundles import manifest as manifests
from demi.bundles.manifest import BatchSpec
from demi.errors import BundleError, DeviceError, DigestError, InferenceError
from demi.runtime.base import Device
from demi.runtime.onnxruntime.session import SessionSettings
from demi.server.models.loading import load_bundle
from demi.server.settings import ServeSettings
from demi.tensors import DType
from tests.server.bundles import (
    ADDS_UP,
    ADDS_UP_IN_HALF,
    FRAGILE,
    GOLDEN_X,
    HALF,
    MIXED,
    SCALE,
    damage,
    write_bundle,
)
from tests.server.fakes import PROOF, open_fake

SETTINGS = ServeSettings(runtime="onnxruntime", precision="half")
WHAT_PAYS = ServeSettings(runtime="onnxruntime")
BF16_ON_CPU = "a bf16 model cannot run on the CPU"


def rewrite(path, **changes):
    """Rewrite a bundle's manifest with other fields."""
    file = path / manifests.MANIFEST
    manifest = manifests.decode(file.read_bytes(), str(path))
    file.write_bytes(manifests.encode(dataclasses.replace(manifest, **changes)))


def test_a_mixed_bundle_is_served_in_its_precision(tmp_path):
    """The half-precision model runs, and its answers are correct."""
    found = load_bundle(write_bundle(tmp_path / "b", MIXED, golden=GOLDEN_X), SETTINGS)

    assert "fp16-in-fp32" == found.precision
    assert [[2, 3, 4]] == found.session.run({"x": np.ones((1, 3), np.float32)})["y"].tolist()
    assert 8 == found.signature.max_batch_size


def test_golden_inputs_warm_the_session(tmp_path):
    """The golden inputs run before the first request."""
    session = open_fake()
    load_bundle(write_bundle(tmp_path / "b", SCALE, golden=GOLDEN_X), SETTINGS, lambda *_: session)

    assert [GOLDEN_X["x"].tolist()] == [feeds["x"].tolist() for feeds in session.runs]


def test_a_bundle_without_golden_inputs_is_served_cold(tmp_path):
    """A bundle without golden inputs is served without warm-up."""
    session = open_fake()
    load_bundle(write_bundle(tmp_path / "b", SCALE), SETTINGS, lambda *_: session)

    assert [] == session.runs


def test_a_model_that_fails_on_its_golden_inputs_is_not_served(tmp_path):
    """A model that fails on its own inputs is an error."""
    path = write_bundle(tmp_path / "b", SCALE, golden=GOLDEN_X)
    with pytest.raises(InferenceError, match="no kernel"):
        load_bundle(path, SETTINGS, lambda *_: open_fake(InferenceError("no kernel")))


def test_settings_reach_the_session(tmp_path):
    """The session has the device, threads and strictness of the settings."""
    path = write_bundle(tmp_path / "b", SCALE)
    settings = dataclasses.replace(SETTINGS, devices=(Device("cuda", 1),), threads=3, strict_device=True)
    asked = []

    def opener(*arguments):
        asked.append(arguments)
        return open_fake()

    load_bundle(path, settings, opener)

    assert [(path / "model.onnx", Device("cuda", 1), SessionSettings(threads=3, strict_device=True))] == asked


def test_a_half_model_that_cannot_run_on_the_cpu_is_served_by_its_reference(tmp_path, caplog):
    """If a kernel loads in half and fails when it runs, the FP32 reference is served, as log and precision report."""
    path = write_bundle(tmp_path / "b", ADDS_UP_IN_HALF, name="m", reference=ADDS_UP, golden=GOLDEN_X)

    found = load_bundle(path, SETTINGS)

    assert "fp32" == found.precision
    assert [[2, 1, 1]] == found.session.run({"x": np.ones((1, 3), np.float32)})["y"].tolist()
    assert "m: its half model cannot run on this CPU" in caplog.text


@pytest.mark.parametrize("device", [Device("cpu"), Device("cuda")])
def test_a_failing_half_model_without_a_fallback(tmp_path, device):
    """Without a reference, or on a GPU, a half model that fails is not served."""
    reference = None if device.kind == "cpu" else SCALE
    path = write_bundle(tmp_path / "b", MIXED, reference=reference, golden=GOLDEN_X)

    with pytest.raises(InferenceError, match="no kernel"):
        load_bundle(
            path,
            dataclasses.replace(SETTINGS, devices=(device,)),
            lambda *_: open_fake(InferenceError("no kernel")),
        )


def test_bf16_on_the_cpu_is_served_by_its_reference(tmp_path, caplog):
    """On a device without BF16 kernels the FP32 reference is served, as log and precision report."""
    path = write_bundle(tmp_path / "b", MIXED, name="m", precision="bf16", reference=SCALE, golden=GOLDEN_X)
    opened = []

    def opener(model, *_):
        opened.append(model.name)
        return open_fake()

    found = load_bundle(path, WHAT_PAYS, opener)

    assert (["reference.onnx"], "fp32") == (opened, found.precision)
    assert BF16_ON_CPU in caplog.text


def test_bf16_on_a_gpu(tmp_path):
    """A GPU serves the BF16 model itself."""
    path = write_bundle(tmp_path / "b", MIXED, precision="bf16", reference=SCALE)
    opened = []

    def opener(model, *_):
        opened.append(model.name)
        return open_fake()

    found = load_bundle(path, dataclasses.replace(SETTINGS, devices=(Device("cuda"),)), opener)

    assert (["model.onnx"], "bf16") == (opened, found.precision)


def test_bf16_on_the_cpu_without_a_reference(tmp_path):
    """The error says what to do."""
    path = write_bundle(tmp_path / "b", MIXED, precision="bf16")
    with pytest.raises(DeviceError, match=f"{BF16_ON_CPU}.*no FP32 reference"):
        load_bundle(path, WHAT_PAYS)


def test_the_reference_may_have_wider_inputs(tmp_path):
    """A reference that takes FP32 where the half model takes FP16 is described with the manifest's FP16."""
    text = HALF.replace("float16", "float").replace("half (", "reference (")
    golden = {"x": np.ones((1, 3), np.float16)}
    path = write_bundle(tmp_path / "b", HALF, precision="bf16", reference=text, golden=golden)

    found = load_bundle(path, WHAT_PAYS)

    assert (DType.FP32, DType.FP16) == (found.session.inputs[0].dtype, found.signature.inputs[0].dtype)


def test_a_damaged_bundle(tmp_path):
    """A file whose digest differs is found before it is loaded."""
    damage(write_bundle(tmp_path / "b", SCALE) / manifests.MODEL)
    with pytest.raises(DigestError, match=r"model\.onnx"):
        load_bundle(tmp_path / "b", SETTINGS)


def test_a_manifest_of_another_model(tmp_path):
    """A manifest whose tensors differ from the model's is refused."""
    path = write_bundle(tmp_path / "b", FRAGILE)
    rewrite(path, inputs=(dataclasses.replace(open_fake().inputs[0], name="other"),))
    with pytest.raises(BundleError, match="the model's inputs are"):
        load_bundle(path, SETTINGS)


def test_a_missing_batch_axis(tmp_path):
    """A bundle that declares joining along an axis of fixed size is refused."""
    text = SCALE.replace("batch", "2")
    path = write_bundle(tmp_path / "b", text, batch=BatchSpec(free=True, proof=PROOF))
    with pytest.raises(BundleError, match="is not dynamic"):
        load_bundle(path, SETTINGS)


def test_max_batch_overrides_the_bundle(tmp_path):
    """`--max-batch` overrides the bundle's largest batch."""
    path = write_bundle(tmp_path / "b", SCALE)
    own, given = (load_bundle(path, dataclasses.replace(SETTINGS, max_batch=size)) for size in (0, 64))

    assert (8, 64) == (own.signature.max_batch_size, given.signature.max_batch_size)
