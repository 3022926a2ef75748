"""`import demi`: quick, lazy, and the commands as functions."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import pytest

import demi
from demi.accuracy.budget import parse_budget
from demi.errors import BundleError, DemiError, InputError, OverBudgetError, SourceError
from demi.runtime.base import Device
from demi.server.settings import named_settings
from tests.demi.test_python_docs import MODEL
from tests.paths import ROOT

HEAVY = ("onnx", "onnx_ir", "onnxruntime", "torch", "numpy", "fastapi", "msgspec", "rich")
SAMPLES = [{"x": np.random.default_rng(seed).normal(size=(2, 8)).astype(np.float32)} for seed in range(4)]


@pytest.fixture
def source(tmp_path):
    """A tiny FP32 model."""
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_import_loads_nothing_heavy():
    """`import demi` does not even load NumPy."""
    code = f"import sys, demi; print([name for name in {HEAVY} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert "[]\n" == ended.stdout


@pytest.mark.parametrize("name", demi.__all__)
def test_every_public_name_is_there(name):
    """Every name in `__all__` can be imported, and `dir` lists it."""
    assert getattr(demi, name) is not None
    assert name in dir(demi)


def test_a_name_that_does_not_exist():
    """An unknown name raises AttributeError, so that `hasattr` works."""
    assert not hasattr(demi, "exprot")


class TestExport:
    """`demi.export`."""

    def test_a_bundle(self, source, tmp_path):
        """A bundle is written, within its budget, and can be loaded."""
        done = demi.export(source, tmp_path / "models/tiny", samples=SAMPLES, report=False)

        assert tmp_path / "models/tiny/1" == done.path
        assert done.conversion.comparison
        with demi.load(done.path) as model:
            assert 2 == model.plan.half_nodes
            assert "y" in str(model.accuracy["outputs"])

    def test_samples_from_a_file(self, source, tmp_path):
        """Samples are read from an `.npz` file, as on the command line."""
        np.savez(tmp_path / "s.npz", **SAMPLES[0])
        done = demi.export(str(source), str(tmp_path / "m"), samples=str(tmp_path / "s.npz"), report=False)

        assert str(tmp_path / "s.npz") in done.samples.origin

    def test_over_budget(self, source, tmp_path):
        """If the model is over budget, nothing is written."""
        with pytest.raises(OverBudgetError, match="`y`"):
            demi.export(source, tmp_path / "m", samples=SAMPLES, budget="max_abs=1e-9", force_half="*", half_io=True)
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"precision": "int8"}, DemiError, "int8"),
            ({"precision": "bf16", "half_io": True}, InputError, "half_io needs fp16"),
            ({"budget": 3}, InputError, "`budget` is a int"),
            ({"budget": "l7=1"}, InputError, "l7"),
            ({"samples": {"x": [1.0]}}, InputError, "one set of inputs"),
            ({"version": 0}, InputError, "`version` is 0"),
            ({"plan": 3}, InputError, "`plan` is a int"),
            ({"inputs": ["x"]}, InputError, "x"),
            ({"optimize": "no"}, InputError, "`optimize` is a str"),
        ],
    )
    def test_invalid_arguments(self, source, tmp_path, options, error, words):
        """The error of an invalid argument names it, before anything is read."""
        with pytest.raises(error, match=words):
            demi.export(source, tmp_path / "m", **options)
        assert not (tmp_path / "m").exists()

    def test_no_such_file(self, tmp_path):
        """A missing file raises SourceError, as on the command line."""
        with pytest.raises(SourceError, match="no such file"):
            demi.export(tmp_path / "none.onnx", tmp_path / "m")

    def test_versions(self, source, tmp_path):
        """The next version is the default; an existing one is replaced only with `force`."""
        options = {"samples": SAMPLES, "report": False}

        assert [1, 2] == [demi.export(source, tmp_path / "m", **options).manifest.version for _ in range(2)]
        with pytest.raises(BundleError, match="exists"):
            demi.export(source, tmp_path / "m", version=1, **options)
        assert 1 == demi.export(source, tmp_path / "m", version=1, force=True, **options).manifest.version
        assert 2 == demi.export(source, tmp_path / "m", force=True, **options).manifest.version


class TestServeSettings:
    """The keyword arguments of `demi.serve`."""

    def test_values_and_text(self):
        """Settings are values or text as on the command line, by the name of the flag or the field."""
        settings = named_settings({"port": 0, "max_batch": "16", "grpc": False, "device": "cpu,cuda:1", "timeout": "5"})

        assert (0, 16, False) == (settings.port, settings.max_batch, settings.grpc)
        assert (Device(), Device("cuda", 1)) == settings.devices
        assert 5 == settings.timeout_s

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"prot": 1}, "`prot` is not a setting"),
            ({"port": "high"}, "port: "),
            ({"zzz": 1}, "`zzz` is not a setting"),
        ],
    )
    def test_invalid_settings(self, values, words):
        """The error of an invalid setting names it."""
        with pytest.raises(InputError, match=words):
            named_settings(values)

    def test_similar_name_is_suggested(self):
        """`prot` suggests `port`."""
        with pytest.raises(InputError) as caught:
            named_settings({"prot": 1})
        assert "`port`" in caught.value.hint


def test_check(source, tmp_path):
    """`demi.check` measures a bundle on data."""
    done = demi.export(source, tmp_path / "m", samples=SAMPLES, report=False)

    assert demi.check(done.path, {"x": SAMPLES[0]["x"]}, budget="relative_l2=1e-2")
    assert not demi.check(done.path, budget="relative_l2=1e-9")


def test_budget_objects_are_taken(source, tmp_path):
    """A Budget object is accepted instead of text."""
    assert demi.export(source, tmp_path / "m", samples=SAMPLES, report=False, budget=parse_budget(["cosine=0.999"]))
