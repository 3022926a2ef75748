"""Scalar inputs and outputs, such as a sample rate or a step, from the samples to the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from demi.bundles.bundle import open_bundle
from demi.bundles.manifest import Manifest
from demi.cli.main import main
from demi.exporter import convert
from demi.exporter.open_source import open_source
from demi.exporter.sources.options import SourceOptions
from tests.models import parse, text

X = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
W = "float[8, 8] w = {" + ", ".join(f"{v:.2f}" for v in np.random.default_rng(1).standard_normal(64)) + "}"

MODELS = {
    "step": (f"m (float[n, 8] x, int64 k) => (float[n, 8] y) <{W}> {{ a = MatMul(x, w) f = Cast <to = 1> (k) y = Mul(a, f) }}", np.int64(3)),
    "first": (f"m (int64 k, float[n, 8] x) => (int64 z, float[n, 8] y) <{W}> {{ y = MatMul(x, w) z = Add(k, k) }}", np.int64(3)),
    "scale": (f"m (float[n, 8] x, float k) => (float[n, 8] y, float s) <{W}> {{ a = MatMul(x, w) y = Mul(a, k) s = ReduceMean <keepdims = 0> (y) }}", np.float32(0.5)),
    "double": (f"m (float[n, 8] x, float k) => (float[n, 8] y) <{W}> {{ a = MatMul(x, w) y = Mul(a, k) }}", np.float64(0.5)),
    "flag": (f"m (float[n, 8] x, bool k) => (float[n, 8] y, bool z) <{W}> {{ a = MatMul(x, w) b = Neg(a) y = Where(k, a, b) z = Not(k) }}", np.bool_(True)),
    "byte": (f"m (float[n, 8] x, uint8 k) => (float[n, 8] y) <{W}> {{ a = MatMul(x, w) f = Cast <to = 1> (k) y = Mul(a, f) }}", np.uint8(3)),
    "text": (f"m (float[n, 8] x, string k) => (float[n, 8] y, string z) <{W}> {{ y = MatMul(x, w) z = Identity(k) }}", np.array("a")),
    "rate": (f"""m (float[n, 8] x, int64 k) => (float[n, 8] y) <{W}, int64 wide = {{16000}}> {{ e = Equal(k, wide)
      y = If (e) <then_branch = t () => (float[n, 8] p) {{ p = MatMul(x, w) }}, else_branch = o () => (float[n, 8] q) {{ q = Neg(x) }}> }}""", np.int64(16000)),
}  # fmt: skip
"""Models with a scalar `k`, and its value."""

BUNDLE = Path("models/m")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exported(name: str, precision: str = "fp16", *more: str) -> Manifest:
    """The manifest of the bundle of one of the models."""
    source, k = MODELS[name]
    with open("m.onnx", "wb") as file:
        file.write(text(parse(source)))
    np.savez("s.npz", x=X, k=k)
    assert 0 == main(["export", f"--{precision}", "m.onnx", "--sample", "s.npz", "--force", *more])
    return open_bundle(BUNDLE).manifest


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp16") for name in MODELS), ("step", "bf16")])
def test_export_and_check(name, precision, folder):
    """A bundle with its report, whose golden scalar is a scalar, and that passes its check."""
    manifest = exported(name, precision)
    golden = open_bundle(BUNDLE).golden()

    assert () == next(spec.shape for spec in manifest.inputs if spec.name == "k")
    assert () == golden.inputs[0]["k"].shape
    assert not manifest.batch.free
    assert 0 == main(["check", "models/m"])
    assert 0 == main(["check", "models/m", "--data", "s.npz"])


@pytest.mark.parametrize("name", ["scale", "flag", "text"])
def test_explain_and_bench(name, folder, capsys):
    """Both commands run such a bundle."""
    exported(name, "fp16", "--no-report")

    assert 0 == main(["explain", "models/m"])
    assert 0 == main(["bench", "models/m", "--seconds", "0.01", "--runtime", "onnxruntime"])


@pytest.mark.parametrize("name", ["step", "scale", "flag", "byte"])
def test_drawn(name, folder):
    """Without samples a scalar is drawn like anything else."""
    source, _ = MODELS[name]
    with open("m.onnx", "wb") as file:
        file.write(text(parse(source)))

    assert 0 == main(["export", "--fp16", "m.onnx", "--no-report"])


def test_half_io(folder):
    """With `--half-io` a float scalar is half, too."""
    manifest = exported("scale", "fp16", "--half-io")

    assert ["FP16", "FP16"] == [spec.dtype.value for spec in manifest.inputs]
    assert 0 == main(["check", "models/m"])


def test_input_ranges_are_those_of_floats(folder):
    """The range of a float scalar is its value; integers have none."""
    assert (0.5, 0.5) == exported("scale").input_ranges["k"]
    assert {"x"} == exported("step").input_ranges.keys()


@pytest.mark.parametrize("k", [3, np.int64(3), np.int32(3), np.array(3)], ids=["int", "int64", "int32", "array"])
def test_python_numbers(k):
    """The Python API takes a plain number."""
    converted = convert(onnx.load_from_string(text(parse(MODELS["step"][0]))), [{"x": X, "k": k}])

    assert converted.comparison


class Scaled(torch.nn.Module):
    """A product and a scalar."""

    def forward(self, x, k):
        return torch.tanh(x) * k


def test_a_pytorch_module(folder):
    """A scalar tensor of a module stays one, in the module's own float type."""
    torch.save(Scaled(), "m.pt")
    source = open_source(folder / "m.pt", SourceOptions(samples=({"x": X, "k": np.array(0.5)},), trust_pickle=True))

    assert [2, 0] == [len(value.shape) for value in source.model.graph.inputs]
    assert {"FLOAT"} == {value.dtype.name for value in source.model.graph.inputs}
    assert not source.notes
