"""`python -m bench.gpu` on the CPU: the code that will meet a GPU, on tiny shapes."""

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
    """The command on the CPU, with tiny shapes."""
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--quick", *flags]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], dict]:
    """Every section, once: what was printed, and the JSON document."""
    path = tmp_path_factory.mktemp("gpu") / "out.json"
    ended = bench("--json", str(path), "--seconds", "500")
    return ended, json.loads(path.read_text())


@pytest.mark.slow
def test_every_section_ends_well(everything):
    """All sections run to their end, print their table, and say the same as JSON."""
    ended, document = everything

    assert 0 == ended.returncode, ended.stdout
    assert list(SECTIONS) == list(document)
    for name, found in document.items():
        assert found["complete"], name
        assert found["rows"], name
        assert f"## {SECTIONS[name].title}" in ended.stdout


@pytest.mark.slow
def test_what_a_cpu_can_is_measured(everything):
    """FP32 and FP16 in ONNX Runtime and half in PyTorch have times at both batch sizes, and a roofline."""
    rows = everything[1]["speed"]["rows"]
    timed = {(row["runtime"], row["precision"], row["batch"]) for row in rows if PROBLEM not in row}
    wanted = {("ONNX Runtime", "fp32"), ("ONNX Runtime", "fp16"), ("PyTorch eager", "fp16"), ("PyTorch eager", "bf16")}

    assert {"BERT", "ResNet"} == {row["model"] for row in rows}
    assert {(*way, batch) for way in wanted for batch in (1, 2)} <= timed
    assert all(row["p50 ms"] > 0 and row["roofline ms"] > 0 for row in rows if PROBLEM not in row)


@pytest.mark.slow
def test_the_emulator_stands_beside_the_device(everything):
    """Predicted and measured error are there for FP16; the CPU, which hides overflow, disagrees on the kernels that do."""
    (fp16,) = (row for row in everything[1]["accuracy"]["rows"] if row["precision"] == "fp16")
    kernels = {row["case"]: row for row in everything[1]["kernels"]["rows"]}

    assert 0 < fp16["measured"] < fp16["predicted"] < 0.01
    assert not [name for name, row in kernels.items() if PROBLEM in row]
    assert not kernels["ReduceL2: 4 of 300"]["agree"]
    assert kernels["Softmax: 4,096 of 0"]["agree"]


@pytest.mark.slow
def test_the_server_stands_beside_the_loop(everything):
    """Requests were answered, none with an error."""
    rows = everything[1]["serving"]["rows"]

    assert {"loop", "HTTP"} == {row["what"] for row in rows}
    assert all(row["rows/s"] > 0 and row["errors"] == 0 for row in rows)


@pytest.mark.slow
def test_what_is_missing_is_said(everything):
    """Where there is no TensorRT, the section says so; bfloat16 has no kernels on the CPU."""
    speed = everything[1]["speed"]["rows"]

    assert all(PROBLEM in row for row in everything[1]["tensorrt"]["rows"])
    assert all(PROBLEM in row for row in speed if (row["runtime"], row["precision"]) == ("ONNX Runtime", "bf16"))


def test_a_section_that_fails_says_so_and_the_next_goes_on(tmp_path):
    """Its last words are in the note, the command ends with 1, and the other section has its table."""
    (tmp_path / "peaks.json").write_text("{}")
    ended = bench("--only", "compile,facts", "--work", str(tmp_path))

    assert 1 == ended.returncode
    assert "INCOMPLETE: TypeError: Peaks.__init__() missing" in ended.stdout
    assert "| numpy |" in ended.stdout


def test_time_that_is_up_leaves_the_rows_so_far(tmp_path):
    """A section without time keeps its first row and says why there are no more."""
    from argparse import Namespace

    from bench.gpu.sections import run_here

    args = Namespace(device="cpu", quick=True, batch="1", each=0.01, seconds=0.0, work=tmp_path)
    with pytest.raises(SystemExit, match="its time was up"):
        run_here("facts", args)

    assert 1 == len((tmp_path / "facts.jsonl").read_text().splitlines())


def test_a_section_that_is_late_ends_what_it_has_started(tmp_path):
    """It is interrupted before it is killed: a server that it left would keep the device's memory."""
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


def test_an_unknown_section_is_told():
    """Exit code 2, and the names to choose among."""
    ended = bench("--only", "sped")

    assert 2 == ended.returncode
    assert "no section `sped`" in ended.stderr
    assert "speed" in ended.stderr


def test_time_that_a_section_leaves_goes_to_the_later_ones():
    """Each gets its share of what is left; the last all of it."""
    until = time.monotonic() + 100
    given = dict(limits(["facts", "speed"], until))

    assert 12.5 == pytest.approx(given["facts"], rel=0.01)
    assert 100 == pytest.approx(given["speed"], rel=0.01)


def test_the_roofline_is_the_slower_of_products_and_copies():
    """1 GFLOP a row at 1 TFLOP/s, and 2 MB of weights at 1 GB/s; more rows make the products count."""
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
def test_the_shapes_have_their_names_sizes(build, millions):
    """As many weights as the networks they are named after, within a percent (BERT's pooler is left out)."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build().parameters())

    assert millions == pytest.approx(count / 1e6, rel=0.01)


def test_vision_transformers_classify():
    """Images in, a thousand numbers a row out."""
    with torch.inference_mode():
        assert (2, 1000) == Vit(1, 32, 2, 32).eval()(torch.zeros(2, 3, 32, 32)).shape


def test_a_measurement_that_fails_has_a_reason():
    """The row keeps its name and holds the error's first line; the table shows it last."""
    row = attempt(lambda: {"p50 ms": 1 / 0}, model="x")

    assert {"model": "x", PROBLEM: "ZeroDivisionError: division by zero"} == row
    table = markdown([row, {"model": "y", "p50 ms": 12345.678}])
    assert "| model | p50 ms | problem |" in table
    assert "| y | 12,346 |  |" in table


def test_a_call_is_timed_often_enough():
    """Three times at least, however slow it is; the median is in milliseconds."""
    times = measure(lambda: time.sleep(0.002), seconds=0.0)

    assert 3 == times.runs
    assert 2 <= times.p50_ms <= times.p95_ms
    assert np.isclose(1000 * 8 / times.p50_ms, times.row(8)["rows/s"])


def test_the_work_folder_is_shared(tmp_path: Path):
    """A section finds what one before it kept."""
    ended = bench("--only", "peaks", "--work", str(tmp_path), "--batch", "1")

    assert 0 == ended.returncode
    assert Peaks(**json.loads((tmp_path / "peaks.json").read_text())).bandwidth > 0
