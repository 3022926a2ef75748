"""`demi export --no-run` at the console."""

import json

import numpy as np
import pytest

from tests.exporter.test_no_run import PLUGIN
from tests.models import parse, text


@pytest.fixture
def model(tmp_path):
    """A model with an operator that only its target has."""
    (tmp_path / "plugin.onnx").write_bytes(text(parse(PLUGIN)))
    return tmp_path / "plugin.onnx"


def test_missing_proof_is_reported(demi, model):
    """In the title, in the table and as a warning."""
    code, out, err = demi("export", "--fp16", "--no-run", model)

    assert 0 == code
    assert "plugin: FP32 -> mixed fp16, not proven" in out
    assert "nodes in fp16" in out
    assert "warning: nothing was run" in err
    assert "trt.plugins::VoxelPool" in err


def test_json(demi, model):
    """For machines as well."""
    code, out, _ = demi("export", "--no-run", "--json", model)

    document = json.loads(out)
    assert (0, False) == (code, document["proven"])
    assert ["trt.plugins::VoxelPool"] == document["unknown_operators"]


def test_an_error_suggests_no_run(demi, model):
    """The error about an unknown operator names the flag."""
    code, _, err = demi("export", "--fp16", model)

    assert 2 == code
    assert (
        "hint: if only another runtime has this operator, convert without running the model: demi export --no-run"
        in err
    )


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        (["--budget", "relative_l2=1e-3"], "--budget"),
        (["--input", "x:float32[n,2]"], "--input"),
        (["--tensorrt"], "--tensorrt"),
    ],
)
def test_options_that_need_a_run(demi, model, more, flag):
    """An option without effect is an error."""
    code, _, err = demi("export", "--no-run", model, *more)

    assert 2 == code
    assert f"error: {flag} has no effect with --no-run" in err


def test_samples_need_a_run(demi, model, tmp_path):
    """Samples have no effect without a run."""
    np.savez(tmp_path / "x.npz", x=np.ones((1, 2), np.float32))

    code, _, err = demi("export", "--no-run", model, "--sample", tmp_path / "x.npz")

    assert (2, True) == (code, "--sample has no effect" in err)


def test_diff_compares_unproven_bundles(demi, model):
    """`demi diff` compares their plans, which is all there is."""
    demi("export", "--no-run", model, "-o", "one/m")
    demi("export", "--no-run", model, "-o", "two/m", "--keep-fp32", "after")

    code, out, _ = demi("diff", "one/m", "two/m")

    assert 0 == code
    assert "after" in out


def test_serving_it_on_a_cpu(demi, model):
    """The error names the operator and where it can run."""
    demi("export", "--no-run", model, "-o", "models/m")

    code, _, err = demi("serve", "models/m", "--port", "0")

    assert 2 == code
    assert "VoxelPool" in err
    assert "operator of another runtime" in err
