"""Benchmarks: memory in a separate process, sizes, and outputs against FP32."""

import sys
from pathlib import Path

import pytest

from demi.bundles.bundle import open_bundle
from demi.calibration.benchmark.bench import bench_bundle
from demi.calibration.benchmark.memory import ENGINE, held_by, measure_memory, named, resident, road_of
from demi.errors import CrashError, InferenceError, InputError
from demi.proofs.record import Road
from demi.runtime.base import CPU
from demi.runtime.openvino.session import openvino_version
from tests.calibration.bundles import edit_model, export, scale_weight
from tests.server.openvino_bundles import HAS_HALF, HERE

on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what is resident")


def test_benchmark_of_two_models(tmp_path):
    """A benchmark reports times at each batch size, both files' sizes, and the golden inputs' errors against FP32."""
    bundle = open_bundle(export(tmp_path))
    result = bench_bundle(bundle, CPU, [1, 4], 0.0)

    assert [1, 4] == [timed.half.batch for timed in result.batches]
    assert bundle.manifest.files["model.onnx"].bytes == result.half.file_bytes
    assert result.comparison
    assert 0 < result.comparison.worst.relative_l2 < 1e-2


def test_a_damaged_model_is_over_budget(tmp_path):
    """Errors are measured on the model as it is now, not copied from the export."""
    bundle = export(tmp_path)
    edit_model(bundle, scale_weight("w1_fp16", 50))

    assert not bench_bundle(open_bundle(bundle), CPU, [1], 0.0).comparison


def test_batch_too_large_for_memory(tmp_path):
    """A batch that does not fit in memory raises an error that names it."""
    with pytest.raises(InputError, match=r"not enough memory for batches of 100,000,000,000,000"):
        bench_bundle(open_bundle(export(tmp_path)), CPU, [10**14], 0.0)


@on_linux
def test_memory_is_measured_in_a_separate_process(tmp_path):
    """The reported memory is the model's own, without this process's; the peak is at least the size after loading."""
    memory = measure_memory(open_bundle(export(tmp_path)), "model.onnx", CPU, 2)

    assert 0 <= memory.loaded_bytes <= memory.peak_bytes < resident()


@on_linux
def test_memory_of_its_own(tmp_path):
    """Pages of files, which the system may reclaim, do not count as the model's own memory."""
    memory = measure_memory(open_bundle(export(tmp_path)), "model.onnx", CPU, 2)

    assert 0 <= memory.own_bytes < resident()


class TestOpenVino:
    """Half computed by the CPU itself in OpenVINO."""

    pytestmark = pytest.mark.skipif(openvino_version() is None, reason="OpenVINO is not installed")
    TYPED = Road("model.onnx", "dynamic")

    @pytest.mark.skipif(not HAS_HALF, reason="this CPU has no units for FP16")
    def test_everything_is_measured(self, tmp_path):
        """The report has measured errors, the emulator's prediction, times and memory."""
        bundle = open_bundle(export(tmp_path))
        result = bench_bundle(bundle, CPU, [1, 4], 0.0, road=self.TYPED)

        assert "computed on cpu by OpenVINO" == result.measured_by
        assert f"OpenVINO {openvino_version()}" in result.machine
        assert result.comparison
        assert result.comparison.worst.relative_l2 == pytest.approx(result.emulated.worst.relative_l2, rel=0.25)
        assert bundle.manifest.files["model.onnx"].bytes == result.half.file_bytes
        assert [1, 4] == [timed.half.batch for timed in result.batches]

    def test_a_damaged_model_is_over_budget(self, tmp_path):
        """The CPU computes with the weights in the file, so that a damaged model is over budget."""
        bundle = export(tmp_path)
        edit_model(bundle, scale_weight("w1_fp16", 50))

        assert not bench_bundle(open_bundle(bundle), CPU, [1], 0.0, road=HERE).comparison

    def test_roads_have_names(self):
        """The measuring process parses the name that is written here."""
        assert self.TYPED == road_of(named(self.TYPED))


def test_model_that_fails_to_load(tmp_path):
    """The error message of the other process is reported."""
    bundle = open_bundle(export(tmp_path))
    (bundle.path / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(InferenceError, match=r"`model.onnx` could not be measured .*cannot load"):
        measure_memory(bundle, "model.onnx", CPU, 2)


def test_killed_process(tmp_path, monkeypatch):
    """The signal that killed the other process is named, and the error is not an InferenceError."""
    bundle = open_bundle(export(tmp_path))
    (tmp_path / "python").write_text("#!/bin/sh\nkill -SEGV $$\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(CrashError, match=r"SIGSEGV .*while measuring `model.onnx`"):
        measure_memory(bundle, "model.onnx", CPU, 2)


def test_missing_engine(tmp_path):
    """An engine is opened through its bundle, with all conditions checked, and not as a file by name."""
    bundle = open_bundle(export(tmp_path))
    (bundle.path / "engine").mkdir()
    (bundle.path / ENGINE).write_bytes(b"code")
    with pytest.raises(InferenceError, match=r"`engine/model.engine` could not be measured .*has no engine"):
        measure_memory(bundle, ENGINE, CPU, 2)


def test_device_memory_is_read_from_the_list():
    """Several lines of one process are summed; a process that is not listed has no known memory."""
    listed = "41, 1000\n4, 7\n4, 5\n"

    assert 12 << 20 == held_by(4, listed)
    assert held_by(1, listed) is None
