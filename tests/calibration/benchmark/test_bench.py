"""Benchmarks: memory in a process of its own, sizes, and answers against FP32."""

import sys
from pathlib import Path

import pytest

from demi.bundles.bundle import open_bundle
from demi.calibration.benchmark.bench import bench_bundle
from demi.calibration.benchmark.memory import ENGINE, held_by, measure_memory, resident
from demi.errors import CrashError, InferenceError, InputError
from demi.runtime.base import CPU
from tests.calibration.bundles import edit_model, export, scale_weight

on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what is resident")


def test_everything_is_measured(tmp_path):
    """Times at each batch size, both files' sizes, and the golden inputs against FP32."""
    bundle = open_bundle(export(tmp_path))
    result = bench_bundle(bundle, CPU, [1, 4], 0.0)

    assert [1, 4] == [timed.half.batch for timed in result.batches]
    assert bundle.manifest.files["model.onnx"].bytes == result.half.file_bytes
    assert result.comparison
    assert 0 < result.comparison.worst.relative_l2 < 1e-2


def test_a_damaged_model_is_over_budget(tmp_path):
    """The errors are the model's own, not those of the export."""
    bundle = export(tmp_path)
    edit_model(bundle, scale_weight("w1_fp16", 50))

    assert not bench_bundle(open_bundle(bundle), CPU, [1], 0.0).comparison


def test_more_rows_than_memory_holds(tmp_path):
    """A batch that cannot be made is told; it is not ours to answer for."""
    with pytest.raises(InputError, match=r"not enough memory for batches of 100,000,000,000,000"):
        bench_bundle(open_bundle(export(tmp_path)), CPU, [10**14], 0.0)


@on_linux
def test_memory_is_that_of_another_process(tmp_path):
    """What a model adds is measured without what this process holds; the peak is no less than what was loaded."""
    memory = measure_memory(open_bundle(export(tmp_path)), "model.onnx", CPU, 2)

    assert 0 <= memory.loaded_bytes <= memory.peak_bytes < resident()


def test_a_model_that_does_not_load(tmp_path):
    """The other process's last words are told."""
    bundle = open_bundle(export(tmp_path))
    (bundle.path / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(InferenceError, match=r"`model.onnx` could not be measured .*cannot load"):
        measure_memory(bundle, "model.onnx", CPU, 2)


def test_a_process_that_dies(tmp_path, monkeypatch):
    """Its signal is named, and it is no failed run."""
    bundle = open_bundle(export(tmp_path))
    (tmp_path / "python").write_text("#!/bin/sh\nkill -SEGV $$\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(CrashError, match=r"SIGSEGV .*while measuring `model.onnx`"):
        measure_memory(bundle, "model.onnx", CPU, 2)


def test_an_engine_that_is_not_there(tmp_path):
    """An engine is opened as the bundle's, under every condition that holds for one, and not as a file of a name."""
    bundle = open_bundle(export(tmp_path))
    (bundle.path / "engine").mkdir()
    (bundle.path / ENGINE).write_bytes(b"code")
    with pytest.raises(InferenceError, match=r"`engine/model.engine` could not be measured .*has no engine"):
        measure_memory(bundle, ENGINE, CPU, 2)


def test_device_memory_is_read_from_the_list():
    """One process's lines add up; a process that is not listed is not known."""
    listed = "41, 1000\n4, 7\n4, 5\n"

    assert 12 << 20 == held_by(4, listed)
    assert held_by(1, listed) is None
