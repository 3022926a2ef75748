"""Several processes that train one model, over gloo on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from demi.cli.main import main
from demi.errors import InputError
from demi.training import ranks
from demi.training.logs import read_log
from demi.training.loop import train
from demi.training.request import TrainRequest
from tests.paths import ROOT
from tests.training.tasks import Task


@pytest.fixture(scope="module", params=["ddp", pytest.param("fsdp", marks=pytest.mark.nightly)])
def done(request, tmp_path_factory) -> tuple[str, Path, list[dict[str, Any]]]:
    """All runs of two ranks: how they share, their folders, and what rank 0 printed of each."""
    folder = tmp_path_factory.mktemp(request.param)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*start, "-m", "tests.training.many", request.param]
    ended = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120)
    assert 0 == ended.returncode, ended.stderr
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(ended.stdout.rstrip()):
        value, at = decoder.raw_decode(ended.stdout, ended.stdout.index("{", at))
        found.append(value)
    return request.param, folder, found


@pytest.mark.slow
def test_one_ranks_overflow_skips_the_step_on_all(done):
    """The cause is the one that rank 1 found; the log is rank 0's, each step once."""
    _, folder, (found, *_) = done
    lines = [line for line in read_log(folder / "faulty") if "loss" in line]

    assert (6, 5, {"batch": 1}) == (found["steps"], found["updates"], found["skipped"])
    assert [1, 2, 3, 4, 5, 6] == [line["step"] for line in lines]
    assert "batch (batch[0]) on rank 1" in lines[2]["skip"]
    assert 32768.0 == lines[3]["precision/scale"]


@pytest.mark.slow
def test_resume_is_bit_for_bit(done):
    """Each rank has its own random numbers back."""
    _, _, (_, whole, part, again, *_) = done

    assert (5, 3, 5) == (whole["steps"], part["steps"], again["steps"])
    assert whole["digest"] == again["digest"] != part["digest"]


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_where_all_were(done, monkeypatch, capsys):
    """Two ranks took four steps; one goes on with batch number eight. FSDP's optimizer is stored another way."""
    shard, folder, _ = done
    monkeypatch.chdir(folder)
    run = "fewer" if shard == "ddp" else "whole"
    name, precision = ("task", "bf16") if shard == "ddp" else ("no_buffers", "fp16")
    task = ["train", f"tests.training.tasks:{name}", "--precision", precision, "-o", run]
    code = main([*task, "--steps", "6", "--resume"])

    if shard == "fsdp":
        assert 2 == code
        assert "go on with --shard fsdp" in capsys.readouterr().err
    else:
        state = json.loads((folder / run / "checkpoints/00000006/state.json").read_text())
        assert (0, 10, 1) == (code, state["counters"]["batches"], state["world"])


def test_processes_without_sharing_are_refused(tmp_path, monkeypatch):
    """Each would train a model of its own into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(InputError, match="2 processes were started"):
        train(TrainRequest(Task(), 1, tmp_path, "fp32"))


def test_sharing_without_torchrun(tmp_path, monkeypatch):
    """The hint has the command."""
    monkeypatch.delenv("RANK", raising=False)

    with pytest.raises(InputError, match="that torchrun starts"):
        train(TrainRequest(Task(), 1, tmp_path, "fp32", shard="ddp"))


def test_one_process_agrees_with_itself():
    """Nothing of torch.distributed is opened for it."""
    import torch

    assert (True, False) == (ranks.all_true(True, torch.device("cpu")), ranks.all_true(False, torch.device("cpu")))
    assert ["here"] == ranks.gather("here")
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.nightly
def test_an_overflow_of_the_all_reduce_is_named(tmp_path):
    """Every rank's own gradients are finite, and their sum in FP16 is not; a step before has no cause at all."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*start, "-m", "tests.training.compressed"]
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)

    assert 0 == ended.returncode, ended.stderr
    assert ["none", "all-reduce"] == ended.stdout.split()
