"""A trained digit classifier: half is as accurate as FP32, and a damaged bundle fails the check."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from demi.bundles.bundle import Bundle, open_bundle, write_manifest
from demi.cli.main import main
from demi.testing import assert_within_budget

pytestmark = pytest.mark.slow

TOP1 = {"labels": "labels", "metric": "top1", "max_loss": 0.002}
"""Gate of the task: at most 0.2 points less than FP32."""


@pytest.fixture
def copy(tour, tmp_path) -> Bundle:
    """Return a copy of the bundle for damaging."""
    return open_bundle(shutil.copytree(tour.made("models/digits/1"), tmp_path / "digits"))


def test_half_reads_as_well_as_fp32(tour):
    """Top-1 on 450 held-out images is above 98% in FP32, and half is at most 0.2 points away."""
    found = assert_within_budget(tour.made("models/digits"), tour.made("work/digits/heldout.npz"), **TOP1)
    task = found.facts.data.task

    assert 450 == found.facts.data.samples
    assert task.fp32.value > 0.98
    assert abs(task.loss) <= 0.002


def test_a_loss_of_accuracy_is_found(tour, copy):
    """A changed bias of the last layer is within a generous budget, but images are misread."""
    model = onnx.load(copy.model_path)
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [10])
    favoured = onnx.numpy_helper.to_array(bias) + np.float16(8) * (np.arange(10) == 3).astype(np.float16)
    bias.CopyFrom(onnx.numpy_helper.from_array(favoured, bias.name))
    onnx.save(model, copy.model_path)
    write_manifest(copy.path, copy.manifest)

    with pytest.raises(AssertionError, match=r"^digits v1 .* failed:\ntop1 of `logits`: .* at most 0.002 is allowed$"):
        assert_within_budget(copy.path, tour.made("work/digits/heldout.npz"), budget="relative_l2=10", **TOP1)


def test_a_copy_sealed_again_passes(copy, capsys):
    """A bundle with new digests passes, as a control for the two tests below."""
    write_manifest(copy.path, copy.manifest)

    assert 0 == main(["check", str(copy.path)])


def test_a_damaged_weight_fails_the_check(copy, capsys):
    """With one weight tensor halved and new digests, the check fails by accuracy."""
    model = onnx.load(copy.model_path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float16(0.5), weight.name))
    onnx.save(model, copy.model_path)
    write_manifest(copy.path, copy.manifest)

    assert 1 == main(["check", str(copy.path)])
    assert "over budget: digits v1: `logits`: relative_l2 is " in capsys.readouterr().err


def test_a_damaged_reference_fails_the_check(copy, capsys):
    """The FP32 model must match the golden outputs as well."""
    assert copy.reference_path is not None
    model = onnx.load(copy.reference_path)
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [10])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1), bias.name))
    onnx.save(model, copy.reference_path)
    write_manifest(copy.path, copy.manifest)

    assert 1 == main(["check", str(copy.path)])
    assert "the FP32 reference differs from the golden outputs" in capsys.readouterr().err


def test_a_changed_byte_is_reported(copy, capsys):
    """A changed byte without a new digest is rejected with exit code 2, bad input."""
    data = copy.model_path.read_bytes()
    copy.model_path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    assert 2 == main(["check", str(copy.path)])
    assert "`model.onnx` is not the file that was written" in capsys.readouterr().err
