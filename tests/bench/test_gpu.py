"""`python -m bench.gpu` on the CPU, with tiny shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.gpu.networks import Bert, ResNet, Vit
from bench.gpu.peaks import Peaks
from bench.gpu.sections import SECTIONS, limits
from bench.gpu.setup import PROBLEM, attempt, markdown
from bench.gpu.shapes import Shape, tokens
from bench.gpu.timing import measure
from tests.readme import ROOT


def bench(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run the command on the CPU, with tiny shapes."""
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--quick", *flags]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], dict]:
    """Return the output and the JSON of all sections."""
    path = tmp_path_factory.mktemp("gpu") / "out.json"
    ended = bench("--json", str(path), "--seconds", "500")
    return ended, json.loads(path.read_text())


@pytest.mark.nightly
def test_every_section(everything):
    """All sections run to their end and print their table, and the JSON has the same rows."""
    ended, document = everything

    assert 0 == ended.returncode, ended.stdout
    assert list(SECTIONS) == list(document)
    for name, found in document.items():
        assert found["complete"], name
        assert found["rows"], name
        assert f"## {SECTIONS[name].title}" in ended.stdout


@pytest.mark.nightly
def test_measurements_on_a_cpu(everything):
    """FP32 and FP16 in ONNX Runtime and half in PyTorch have times at both batch sizes, and a roofline."""
    rows = everything[1]["speed"]["rows"]
    timed = {(row["runtime"], row["precision"], row["batch"]) for row in rows if PROBLEM not in row}
    wanted = {("ONNX Runtime", "fp32"), ("ONNX Runtime", "fp16"), ("PyTorch eager", "fp16"), ("PyTorch eager", "bf16")}

    assert {"BERT", "ResNet"} == {row["model"] for row in rows}
    assert {(*way, batch) for way in wanted for batch in (1, 2)} <= timed
    assert all(row["p50 ms"] > 0 and row["roofline ms"] > 0 for row in rows if PROBLEM not in row)


@pytest.mark.nightly
def test_predicted_and_measured_error(everything):
    """FP16 has a predicted and a measured error; the CPU hides overflow and disagrees on kernels that overflow."""
    (fp16,) = (row for row in everything[1]["accuracy"]["rows"] if row["precision"] == "fp16")
    kernels = {row["case"]: row for row in everything[1]["kernels"]["rows"]}

    assert 0 < fp16["measured"] < fp16["predicted"] < 0.01
    assert not [name for name, row in kernels.items() if PROBLEM in row]
    assert not kernels["ReduceL2: 4 of 300"]["agree"]
    assert kernels["Softmax: 4,096 of 0"]["agree"]


@pytest.mark.nightly
def test_serving(everything):
    """All requests were answered without an error."""
    rows = everything[1]["serving"]["rows"]

    assert {"loop", "HTTP"} == {row["what"] for row in rows}
    assert all(row["rows/s"] > 0 and row["errors"] == 0 for row in rows)


@pytest.mark.nightly
def test_missing_parts_have_a_reason(everything):
    """Without TensorRT its section has the reason; bfloat16 has no kernels on the CPU."""
    speed = everything[1]["speed"]["rows"]

    assert all(PROBLEM in row for row in everything[1]["tensorrt"]["rows"])
    assert all(PROBLEM in row for row in speed if (row["runtime"], row["precision"]) == ("ONNX Runtime", "bf16"))


def test_failed_section(tmp_path):
    """A failed section has its error in the note, the exit code is 1, and the next section has its table."""
    (tmp_path / "peaks.json").write_text("{}")
    ended = bench("--only", "compile,facts", "--work", str(tmp_path))

    assert 1 == ended.returncode
    assert "INCOMPLETE: TypeError: Peaks.__init__() missing" in ended.stdout
    assert "| numpy |" in ended.stdout


def test_section_without_time(tmp_path):
    """A section without time keeps its first row and the reason that there are no more."""
    from argparse import Namespace

    from bench.gpu.sections import run_here

    args = Namespace(device="cpu", quick=True, batch="1", each=0.01, seconds=0.0, work=tmp_path)
    with pytest.raises(SystemExit, match="its time was up"):
        run_here("facts", args)

    assert 1 == len((tmp_path / "facts.jsonl").read_text().splitlines())


def test_late_section_is_interrupted(tmp_path):
    """A late section is interrupted before it is killed: a server left behind would keep the device's memory."""
    from bench.gpu.sections import run_within

    script = f"""
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    time.sleep(60)
finally:
    pathlib.Path({str(tmp_path / "ended")!r}).touch()
"""
    with pytest.raises(subprocess.TimeoutExpired):
        run_within([sys.executable, "-c", script], 2)

    assert (tmp_path / "ended").exists()


def test_unknown_section():
    """An unknown section exits with 2 and lists the known ones."""
    ended = bench("--only", "sped")

    assert 2 == ended.returncode
    assert "no section `sped`" in ended.stderr
    assert "speed" in ended.stderr


def test_shares_of_the_remaining_time():
    """Each section gets its share of the remaining time, the last one all of it."""
    until = time.monotonic() + 100
    given = dict(limits(["facts", "speed"], until))

    assert 12.5 == pytest.approx(given["facts"], rel=0.01)
    assert 100 == pytest.approx(given["speed"], rel=0.01)


def test_the_roofline_is_the_slower_of_products_and_copies():
    """1 GFLOP a row at 1 TFLOP/s, and 2 MB of weights at 1 GB/s: with more rows the products dominate."""
    peaks = Peaks(bandwidth=1e9, rates={"fp16": 1e12})

    assert 2.0 == pytest.approx(peaks.bound_ms("fp16", 1, flops=1e9, numbers=0, weights=10**6))
    assert 8.0 == pytest.approx(peaks.bound_ms("fp16", 8, flops=1e9, numbers=0, weights=10**6))
    assert peaks.bound_ms("bf16", 1, flops=1e9, numbers=0, weights=10**6) is None


def test_the_work_of_a_shape_is_counted():
    """A linear layer of 8 by 4 on 3 tokens is 2 * 3 * 8 * 4 FLOPs; 3 ids go in and 12 numbers come out."""
    module = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.Linear(8, 4))
    module.forward = lambda input_ids: module[1](module[0](input_ids))  # type: ignore[method-assign]
    shape = Shape("linear", module.eval(), tokens(3, 10))

    assert (192, 15) == shape.work()
    assert 10 * 8 + 8 * 4 + 4 == shape.weights


@pytest.mark.parametrize(
    ("build", "millions"), [(Bert, 109), (ResNet, 25.6), (Vit, 86.6)], ids=["BERT-base", "ResNet-50", "ViT-B/16"]
)
def test_sizes_of_the_networks(build, millions):
    """The networks have the number of weights of their namesakes, within a percent (without BERT's pooler)."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build().parameters())

    assert millions == pytest.approx(count / 1e6, rel=0.01)


def test_vision_transformers_classify():
    """A vision transformer returns a thousand numbers for each image."""
    with torch.inference_mode():
        assert (2, 1000) == Vit(1, 32, 2, 32).eval()(torch.zeros(2, 3, 32, 32)).shape


def test_failed_measurement_has_a_reason():
    """A failed row keeps its name and has the error's first line, which the table shows last."""
    row = attempt(lambda: {"p50 ms": 1 / 0}, model="x")

    assert {"model": "x", PROBLEM: "ZeroDivisionError: division by zero"} == row
    table = markdown([row, {"model": "y", "p50 ms": 12345.678}])
    assert "| model | p50 ms | problem |" in table
    assert "| y | 12,346 |  |" in table


def test_a_slow_call_is_timed_three_times():
    """A slow call is timed at least three times; the median is in milliseconds."""
    times = measure(lambda: time.sleep(0.002), seconds=0.0)

    assert 3 == times.runs
    assert 2 <= times.p50_ms <= times.p95_ms
    assert np.isclose(1000 * 8 / times.p50_ms, times.row(8)["rows/s"])


def test_the_work_folder_is_shared(tmp_path: Path):
    """A section finds the files of an earlier one."""
    ended = bench("--only", "peaks", "--work", str(tmp_path), "--batch", "1")

    assert 0 == ended.returncode
    assert Peaks(**json.loads((tmp_path / "peaks.json").read_text())).bandwidth > 0
