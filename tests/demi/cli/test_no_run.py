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


def test_what_was_not_proven_is_said(demi, model):
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


def test_without_it(demi, model):
    """The error names the flag."""
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
def test_what_needs_a_run(demi, model, more, flag):
    """An option that would mean nothing is no silent one."""
    code, _, err = demi("export", "--no-run", model, *more)

    assert 2 == code
    assert f"error: {flag} means nothing with --no-run" in err


def test_samples_need_a_run(demi, model, tmp_path):
    """Samples, too."""
    np.savez(tmp_path / "x.npz", x=np.ones((1, 2), np.float32))

    code, _, err = demi("export", "--no-run", model, "--sample", tmp_path / "x.npz")

    assert (2, True) == (code, "--sample means nothing" in err)


def test_two_of_them_side_by_side(demi, model):
    """`demi diff` compares their plans, which is all there is."""
    demi("export", "--no-run", model, "-o", "one/m")
    demi("export", "--no-run", model, "-o", "two/m", "--keep-fp32", "after")

    code, out, _ = demi("diff", "one/m", "two/m")

    assert 0 == code
    assert "after" in out


def test_serving_it_on_a_cpu(demi, model):
    """It is refused with the operator's name and where it can run."""
    demi("export", "--no-run", model, "-o", "models/m")

    code, _, err = demi("serve", "models/m", "--port", "0")

    assert 2 == code
    assert "VoxelPool" in err
    assert "operator of another runtime" in err
