"""`demi rescale`: what it writes, what it prints, and when it writes nothing."""

import json

import numpy as np
import onnx
import pytest

from demi.calibration.rescaling.certificate import read_certificate
from demi.exporter.rescaling.api import rescale
from tests.models import MLP, OVERFLOW, parse, text


@pytest.fixture
def model(tmp_path):
    """The model that overflows, and its samples, in the current folder."""
    (tmp_path / "m.onnx").write_bytes(text(parse(OVERFLOW)))
    np.savez(tmp_path / "x.npz", x=np.full(8, 1024.0, np.float32))
    return "m.onnx"


def test_writes_the_model_and_its_certificate(demi, model, tmp_path):
    """The factors in the file are powers of two times those in the source, and cancel."""
    code, out, _ = demi("rescale", model, "--sample", "x.npz", "-o", "fixed.onnx", "--certificate", "c.json", "--json")

    assert 0 == code
    assert "fixed.onnx" == json.loads(out)["model"]
    held = {
        each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "fixed.onnx").graph.initializer
    }
    exponents = {each.name: each.exponent for each in read_certificate(tmp_path / "c.json").constants}
    assert np.float32(100.0 * 2.0 ** exponents["hundred"]) == held["hundred"]
    assert 0 == exponents["hundred"] + exponents["small"]


def test_tells_what_was_multiplied(demi, model):
    """One table names the constants."""
    code, out, _ = demi("rescale", model, "--sample", "x.npz", "-o", "fixed.onnx")

    assert 0 == code
    assert "hundred" in out
    assert "to the last bit" in out


def test_nothing_to_do(demi, tmp_path):
    """A model that fits is left alone, and nothing is written."""
    (tmp_path / "m.onnx").write_bytes(text(parse(MLP)))
    np.savez(tmp_path / "x.npz", x=np.ones((2, 4), np.float32))

    code, out, _ = demi("rescale", "m.onnx", "--sample", "x.npz", "-o", "fixed.onnx")

    assert 0 == code
    assert "nothing was written: nothing overflows or vanishes in FP16" in out
    assert not (tmp_path / "fixed.onnx").exists()


def test_its_own_source_is_refused(demi, model):
    """The source is never overwritten."""
    assert 2 == demi("rescale", model, "--sample", "x.npz", "-o", model)[0]


def test_in_memory():
    """`rescale` returns a model with the same answers, and why each node fits."""
    found = rescale(parse_proto(OVERFLOW), [{"x": np.full(8, 1024.0, np.float32)}])

    assert found.certificate is not None
    assert "grow" in found.fits


def parse_proto(source):
    """A model in text as a ModelProto."""
    return onnx.load_from_string(text(parse(source)))
