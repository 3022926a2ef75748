"""Engines built beside a bundle: the whole road, on a stand-in for TensorRT that computes what its model says."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import onnx
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.bundles.bundle import open_bundle
from demi.cli.main import main
from demi.engines import record as engine_records
from demi.engines.key import read_key
from demi.engines.record import read_engine
from demi.errors import (
    ConversionError,
    DeviceError,
    InputError,
    OverBudgetError,
    PackageError,
)
from demi.exporter.tensorrt.build import build_engine
from demi.exporter.tensorrt.builder import EngineOptions
from demi.exporter.tensorrt.shapes import ShapeOptions
from demi.runtime.base import Device
from tests.calibration.bundles import X, export
from tests.fake_cuda import FakeCudart
from tests.fake_trt import FakeTrt, Flag, install
from tests.models import EMBEDDING, parse, text


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes this a machine with TensorRT, whose engine key and timing cache lie in a folder of the test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def be(cudart=None, **fields):
        return install(monkeypatch, FakeTrt(cudart or FakeCudart(), **fields))

    return be


@pytest.fixture
def bundle(tmp_path):
    """A half-precision bundle of two layers, with a free batch of at most 32 rows."""
    return open_bundle(export(tmp_path))


def config_of(trt):
    """Return the configuration that the builder got."""
    (config,) = trt.configs
    return config


def model_of(bundle):
    """The ONNX model in the bundle's engine: the stand-in's plans end with it."""
    plan = (bundle.path / engine_records.FOLDER / engine_records.ENGINE).read_bytes()
    start = 32 + int.from_bytes(plan[28:32], "little")
    return onnx.load_from_string(plan[start:])


class TestBuild:
    """`build_engine`."""

    def test_an_engine_is_sealed_beside_the_bundle(self, machine, bundle):
        """It can be read with this machine's key, and the bundle is what it was."""
        machine()
        built = build_engine(bundle, EngineOptions())
        found = read_engine(bundle, read_key(EngineOptions().key))

        assert (built.path, 32) == (bundle.path / "engine" / "model.engine", found.max_rows)
        assert ("11.4.0.106", "Fake GPU", (9, 0)) == (
            found.record.tensorrt,
            found.record.gpu,
            found.record.capability,
        )
        bundle.verify()

    def test_single_stays_single(self, machine, bundle):
        """The network is strongly typed (the stand-in takes no other), and TF32 is off."""
        trt = machine()
        build_engine(bundle, EngineOptions())

        assert [Flag.TF32] == config_of(trt).cleared
        assert [] == config_of(trt).flags

    def test_shapes_follow_from_the_bundle(self, machine, bundle):
        """Rows from one to the largest batch; the shapes are in the record."""
        trt = machine()
        built = build_engine(bundle, EngineOptions())

        assert {"x": [[1, 4], [32, 4], [32, 4]]} == config_of(trt).profiles[0].shapes
        assert (1, 4) == built.record.shapes["x"].min

    def test_options_reach_the_builder(self, machine, bundle):
        """Each option is one setting of the builder."""
        trt = machine()
        options = EngineOptions(
            workspace_bytes=1 << 30, level=5, hardware="ampere+", version_compatible=True, device=Device("cuda", 1)
        )
        built = build_engine(bundle, options)
        config = config_of(trt)

        assert ({"workspace": 1 << 30}, 5, "ampere", "detailed") == (
            config.limits,
            config.builder_optimization_level,
            config.hardware_compatibility_level,
            config.profiling_verbosity,
        )
        assert [Flag.VERSION_COMPATIBLE, Flag.EXCLUDE_LEAN_RUNTIME] == config.flags
        assert ("ampere+", True) == (built.record.hardware, built.record.version_compatible)
        assert {1} == set(trt.cudart.used)

    def test_what_was_measured_is_kept(self, machine, bundle, tmp_path):
        """A second build starts from the timing cache of the first; one that does not fit is left."""
        machine()
        cache = tmp_path / "timing.cache"
        cache.write_bytes(b"of another GPU")
        for _ in range(2):
            build_engine(bundle, EngineOptions(timing_cache=cache))

        assert b"measured;measured;" == cache.read_bytes()

    def test_the_cache_is_one_of_this_gpu_and_version(self, machine, bundle, tmp_path):
        """Without a path, it is in the user's cache."""
        machine()
        build_engine(bundle, EngineOptions())

        assert (tmp_path / "home/.cache/demi/timing-11.4.0.106-Fake-GPU.cache").is_file()

    def test_sums_in_single(self, machine, bundle):
        """With --fp32-accumulate, the engine's matrix products read FP32 through casts; the bundle's model does not change."""
        machine()
        build_engine(bundle, EngineOptions(fp32_accumulate=True))
        casts = [node.op_type for node in model_of(bundle).graph.node].count("Cast")

        assert casts == 6 + [node.op_type for node in onnx.load(bundle.model_path).graph.node].count("Cast")
        bundle.verify()

    def test_layers(self, machine, bundle):
        """The layers that TensorRT runs, with their times, are written beside the engine."""
        machine()
        build_engine(bundle, EngineOptions())
        document = json.loads((bundle.path / "engine" / "layers.json").read_text())

        assert (["everything"], 0.5) == ([layer["name"] for layer in document["layers"]], document["total_ms"])
        assert {"x": [32, 4]} == document["timed_shapes"]
        assert "everything" in (bundle.path / "engine" / "report.html").read_text()

    def test_answers_are_compared_with_fp32(self, machine, bundle, caplog):
        """The golden inputs that fit the engine's shapes are compared with FP32, and the error is reported.

        If none fit, that is logged.
        """
        machine()
        built = build_engine(bundle, EngineOptions())
        assert "" == caplog.text
        small = build_engine(bundle, EngineOptions(shapes=ShapeOptions(max={"x": (2, 4)})))

        assert 0 < built.comparison.worst.relative_l2 < 0.01
        assert small.comparison is None
        assert "no golden inputs fit the engine" in caplog.text

    def test_progress_is_reported(self, machine, bundle):
        """A step that takes progress gets it."""
        machine()
        reported = []

        @contextmanager
        def step(name):
            yield reported.append

        build_engine(bundle, EngineOptions(), step)

        assert 1.0 == reported[-1]


class TestFailures:
    """Every reason for a failed build, and the files that remain."""

    def test_an_operator_that_tensorrt_lacks(self, machine, bundle):
        """The parser's error names the node and its operator."""
        machine(unsupported="Relu")
        with pytest.raises(ConversionError, match=r"No importer registered \(node `act`, Relu\)"):
            build_engine(bundle, EngineOptions())
        assert not (bundle.path / "engine").exists()

    def test_a_build_that_fails(self, machine, bundle):
        """TensorRT's last message is reported, with options that may help."""
        machine(fails=["build"])
        with pytest.raises(ConversionError, match="could not find any implementation") as caught:
            build_engine(bundle, EngineOptions())
        assert "--workspace" in caught.value.hint

    def test_axes_of_which_nothing_is_known(self, machine, tmp_path):
        """A free axis beside the batch needs a range, before anything is built."""
        trt = machine()
        bundle = open_bundle(export(tmp_path))
        spec = replace(bundle.manifest.inputs[0], shape=("batch", "seq"))
        free = replace(bundle, manifest=replace(bundle.manifest, inputs=(spec,)))
        with pytest.raises(InputError, match="axis `seq` of `x` is free"):
            build_engine(free, EngineOptions())
        assert [] == trt.configs

    def test_an_engine_beyond_the_budget_is_not_kept(self, machine, tmp_path):
        """TensorRT may round where no emulation did: an engine that is too far from FP32 is refused, and left out."""
        machine()
        bundle = open_bundle(export(tmp_path))
        strict = replace(bundle, manifest=replace(bundle.manifest, budget=Budget(Limits(relative_l2=1e-9))))
        with pytest.raises(OverBudgetError, match=r"`y`: relative_l2 is .* at most 1e-09") as caught:
            build_engine(strict, EngineOptions())

        assert "--fp32-accumulate" in caught.value.hint
        assert not (bundle.path / "engine").exists()

    def test_a_folder_that_cannot_be_written(self, machine, bundle, monkeypatch):
        """It is refused before the build, which takes minutes."""
        trt = machine()

        def refuse(**_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(tempfile, "mkstemp", refuse)
        with pytest.raises(InputError, match="cannot be written"):
            build_engine(bundle, EngineOptions())
        assert [] == trt.configs

    def test_no_gpu(self, machine, bundle):
        """Without a GPU there is nothing to build for."""
        machine(FakeCudart(gpus=0))
        with pytest.raises(DeviceError, match="this machine has 0 GPUs"):
            build_engine(bundle, EngineOptions())

    def test_ctrl_c(self, machine, bundle):
        """A build that is stopped leaves no engine and no draft."""
        machine()

        @contextmanager
        def step(name):
            def interrupt(share):
                raise KeyboardInterrupt

            yield interrupt

        with pytest.raises(KeyboardInterrupt):
            build_engine(bundle, EngineOptions(), step)
        assert not (bundle.path / "engine").exists()


class TestCommand:
    """`demi export --tensorrt`."""

    @pytest.fixture
    def demi(self, capsys):
        """Runs a command; returns (exit code, stdout, stderr)."""

        def run(*arguments):
            code = main([str(argument) for argument in arguments])
            return code, *capsys.readouterr()

        return run

    def test_an_engine_for_a_bundle(self, machine, bundle, demi):
        """A bundle gets an engine and stays as it is; the table says what it takes."""
        machine()
        code, out, _ = demi("export", "--tensorrt", bundle.path.parent)

        assert 0 == code
        assert "TensorRT 11.4.0.106" in out
        assert "from 1x4 to 32x4" in out

    def test_bench_needs_an_engine_that_is_there(self, machine, bundle, demi):
        """`demi bench --engine` times what was built, on a GPU, and says what is missing."""
        machine()
        for flags, problem in (((), "engines run on a GPU"), (("--device", "cuda"), "the bundle has no engine")):
            code, _, err = demi("bench", bundle.path, "--engine", *flags)

            assert (2, f"error: {problem}") == (code, err.splitlines()[0])

    def test_a_model_and_its_engine(self, machine, tmp_path, demi):
        """The bundle is exported, and its engine built, in one command; trtexec's spelling is understood."""
        machine()
        bundle = export(tmp_path)
        np.savez(tmp_path / "x.npz", x=X)
        flags = ("--fp16", "--no-calibrate", "--tensorrt", "--maxShapes", "x:8x4", "--json")
        code, out, _ = demi(
            "export", tmp_path / "tiny.onnx", "-o", tmp_path / "again", "--sample", tmp_path / "x.npz", *flags
        )

        assert 0 == code
        assert bundle.is_dir()
        assert [8, 4] == json.loads(out)["engine"]["shapes"]["x"]["max"]

    def test_a_bundle_stays_whatever_becomes_of_its_engine(self, machine, tmp_path, demi):
        """The error comes after the bundle is whole, and says where it is."""
        machine(fails=["build"])
        export(tmp_path)
        code, _, err = demi("export", tmp_path / "tiny.onnx", "--no-calibrate", "--tensorrt", "-o", tmp_path / "again")

        assert 2 == code
        assert "the bundle was written without an engine" in err
        open_bundle(tmp_path / "again").verify()

    def test_without_tensorrt(self, monkeypatch, tmp_path, demi):
        """A missing package ends the command before the long part, with exit code 3."""
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        code, _, err = demi("export", tmp_path / "none.onnx", "--tensorrt")

        assert PackageError.exit_code == code
        assert "demi-inference[tensorrt]" in err

    @pytest.mark.parametrize(
        ("flags", "problem"),
        [
            (["--max-shapes", "x:8x4"], "--max-shapes needs --tensorrt"),
            (["--fp32-accumulate"], "--fp32-accumulate needs --tensorrt"),
            (["--hardware-compatibility", "ampere+"], "--hardware-compatibility needs --tensorrt"),
            (["--engine-key", "k"], "--engine-key needs --tensorrt"),
            (["--tensorrt", "--device", "cpu"], "engines are built on a GPU"),
            (["--tensorrt", "--hardware-compatibility", "all"], "unknown hardware compatibility `all`"),
            (["--tensorrt", "--workspace", "much"], "`much` is not a size"),
            (["--tensorrt", "--opt-shapes", "x=8"], "cannot read `x=8`"),
            ([], "this is already a bundle"),
        ],
    )
    def test_wrong_options(self, machine, bundle, demi, flags, problem):
        """Options that do not fit are refused, with exit code 2."""
        machine()
        code, _, err = demi("export", bundle.path, *flags)

        assert 2 == code
        assert re.search(problem, err)


def test_embedding_models_take_trtexec_shapes(machine, tmp_path):
    """Two inputs that share a free axis are given one range."""
    trt = machine()
    (tmp_path / "e.onnx").write_bytes(text(parse(EMBEDDING)))
    assert 0 == main(
        [
            *("export", str(tmp_path / "e.onnx"), "--no-calibrate", "--tensorrt", "-o", str(tmp_path / "e")),
            *("--max-shapes", "input_ids:4x9,attention_mask:4x9", "--max-batch", "4"),
        ]
    )
    assert [[1, 1], [4, 9], [4, 9]] == config_of(trt).profiles[0].shapes["input_ids"]
    assert ShapeOptions() == EngineOptions().shapes
