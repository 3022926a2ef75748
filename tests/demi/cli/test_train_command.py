"""`demi train` on the command line: what it prints, how it ends, and what is left when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from demi.cli.main import main
from tests.paths import ROOT

TASK = "tests.training.tasks:task"


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Run one command in this process; return its exit code and what it wrote."""
    code = main(["train", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_table(capsys, tmp_path):
    """Steps, skips, loss, metrics and the run's folder."""
    code, out, _ = run(capsys, TASK, "--steps", "4", "--precision", "bf16", "-o", str(tmp_path / "r"))

    assert 0 == code
    for word in ("trained in bf16", "4 updates, 0 skipped", "accuracy", str(tmp_path / "r")):
        assert word in out


def test_a_run_that_is_done_has_no_loss_of_its_own(capsys, tmp_path):
    """Resumed to write the model, it takes no step: the table has its metrics, and no number that is none."""
    options = [TASK, "--steps", "2", "--precision", "fp32", "-o", str(tmp_path / "r")]
    run(capsys, *options)
    code, out, _ = run(capsys, *options, "--save-model", "--resume")

    assert 0 == code
    assert "accuracy" in out
    assert "nan" not in out
    assert (tmp_path / "r/model.pt2").is_file()


def test_json(capsys, tmp_path):
    """The same for machines."""
    _, out, _ = run(capsys, TASK, "--steps", "3", "--precision", "fp32", "--json", "-o", str(tmp_path / "r"))
    found = json.loads(out)

    assert (3, 3, "fp32", False) == (found["steps"], found["updates"], found["precision"], found["interrupted"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere:task", "--steps", "1"], 2, "the task `nowhere:task` cannot be made: ModuleNotFoundError"),
        (["tests.training.tasks", "--steps", "1"], 2, "is not a task's name"),
        (["tests.training.tasks:broken", "--steps", "1"], 2, "RuntimeError: no data here"),
        (["tests.training.tasks:WEIGHTS", "--steps", "1"], 2, "cannot be made"),
        ([TASK], 2, "--steps"),
        ([TASK, "--steps", "0"], 2, "`0` is not a positive number"),
        ([TASK, "--steps", "1", "--lr", "-1"], 2, "`-1` is not a number"),
        ([TASK, "--steps", "1", "--precision", "fp8"], 2, "unknown precision `fp8`"),
        ([TASK, "--steps", "1", "--precision", "fp16-pure"], 2, "epsilon"),
        ([TASK, "--steps", "1", "--schedule", "stairs"], 2, "unknown schedule `stairs`"),
        ([TASK, "--steps", "1", "--device", "cuda:9"], 2, "cannot be used"),
        ([TASK, "--steps", "1", "--resume"], 2, "no checkpoint to go on from"),
        (
            ["tests.training.tasks:BadLoss", "--steps", "9", "--max-skips", "2", "--precision", "bf16"],
            1,
            "2 steps in a row",
        ),
    ],
)
def test_what_cannot_be(capsys, tmp_path, monkeypatch, arguments, code, words):
    """Every mistake has its words, an exit code, and no traceback."""
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, *arguments)

    assert code == found
    assert words in err
    assert "" == out
    assert "Traceback" not in err


def test_a_signal_saves_and_says_how_to_go_on(tmp_path):
    """After SIGINT the current step ends, a checkpoint is written, and the run can be resumed."""
    command = [sys.executable, "-m", "demi", "train", TASK, "--steps", "100000", "--precision", "fp32", "-o", "r"]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True)
    log, ends = tmp_path / "r/log.jsonl", time.monotonic() + 60
    while not (log.is_file() and log.read_text().count("\n") > 3) and time.monotonic() < ends:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert 130 == process.returncode, err
    assert "go on with the same command and --resume" in err
    assert 1 == len(list((tmp_path / "r/checkpoints").iterdir()))


@pytest.mark.parametrize(("margin", "code", "word"), [("0.5", 0, "as good"), ("1e-9", 1, "not shown")])
def test_a_comparison_is_a_gate(capsys, tmp_path, margin, code, word):
    """The verdict and its exit code; two pairs show no difference of 1e-9."""
    options = ["--compare", "2", "--metric", "loss", "--margin", margin, "--precision", "bf16", "--steps", "4"]
    found, out, _ = run(capsys, TASK, *options, "-o", str(tmp_path / "r"))

    assert code == found
    assert word in out


def test_fp32_is_not_compared_with_itself(capsys, tmp_path):
    """`auto` could be fp32."""
    found, _, err = run(capsys, TASK, "--compare", "2", "--steps", "1", "-o", str(tmp_path / "r"))

    assert 2 == found
    assert "name the half type" in err


def test_the_table_of_memory(capsys, tmp_path):
    """Each part beside FP32's."""
    _, out, _ = run(capsys, TASK, "--memory", "--precision", "bf16", "--steps", "1", "-o", str(tmp_path / "r"))

    for word in ("memory in bytes, counted", "activations", "bfloat16"):
        assert word in out


def test_memory_that_was_not_counted(capsys, tmp_path):
    """No update, no optimizer state: a note instead of a table."""
    options = ["--memory", "--precision", "bf16", "--steps", "1", "-o", str(tmp_path / "r")]
    code, _, err = run(capsys, "tests.training.tasks:BadLoss", *options)

    assert 0 == code
    assert "the memory was not counted" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [("task", 0, "resumed after step 4: the weights are the same"), ("Forgetful", 1, "other weights")],
)
def test_a_resume_is_verified(capsys, tmp_path, name, code, words):
    """In a fresh process; a task whose batches do not follow from their position is found."""
    options = ["--precision", "fp16", "--steps", "6", "--save-every", "4", "--verify-resume"]
    found, _, err = run(capsys, f"tests.training.tasks:{name}", *options, "-o", str(tmp_path / "r"))

    assert code == found
    assert words in err
