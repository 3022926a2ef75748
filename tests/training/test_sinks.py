"""TensorBoard and Weights & Biases beside the log, also over a resume."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest

from demi.errors import PackageError
from demi.training.checkpoint import checkpoints
from demi.training.loop import train
from demi.training.request import TrainRequest
from tests.paths import ROOT
from tests.training.tasks import Task


@pytest.fixture
def wandb(monkeypatch) -> list[dict[str, Any]]:
    """A stand-in for the package, with what it was asked for."""
    calls: list[dict[str, Any]] = []

    class Run:
        def log(self, values, step):
            calls.append({"step": step} | values)

        def finish(self):
            calls.append({"finished": True})

    module = ModuleType("wandb")
    module.init = lambda **options: calls.append(options) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_tensorboard(tmp_path):
    """Its files hold every step once, after a resume as well."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole = TrainRequest(Task(), 6, tmp_path, "fp16", save_every=4, logs=("tensorboard",))
    train(whole)
    shutil.rmtree(checkpoints(tmp_path)[-1])
    train(replace(whole, resume=True))
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()

    assert [1, 2, 3, 4, 5, 6] == [event.step for event in found.Scalars("loss")]
    assert [65536.0] * 6 == [event.value for event in found.Scalars("precision/scale")]


def test_wandb(tmp_path, wandb):
    """Numbers by step; one identity for the processes of one run."""
    run = TrainRequest(Task(), 2, tmp_path, "fp32", logs=("wandb",))
    train(run)
    train(replace(run, steps=3, resume=True))
    began = [call for call in wandb if "project" in call]

    assert [1, 2, 2, 3, 3] == [call["step"] for call in wandb if "step" in call]
    assert 2 == len(began)
    assert began[0]["id"] == began[1]["id"]
    assert {"finished": True} == wandb[-1]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed: pip install wandb")
def test_the_real_wandb_offline(tmp_path):
    """It writes the run's file and sends nothing; every step is in it, once, with Demi's names."""
    script = (
        "from pathlib import Path; from demi.training.loop import train; from demi.training.request import TrainRequest;"
        "from tests.training.tasks import Task;"
        "train(TrainRequest(Task(), 3, Path('run'), 'fp32', logs=('wandb',)))"
    )
    environ = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300
    )
    assert 0 == done.returncode, done.stderr
    (written,) = (tmp_path / "run").rglob("run-*.wandb")
    content = written.read_bytes()

    assert content.count(b"precision/gradient_norm") >= 3
    assert (tmp_path / "run/wandb-id").read_text().encode() in content


def test_a_missing_package(tmp_path, monkeypatch):
    """It is named before anything is trained."""
    monkeypatch.setitem(sys.modules, "wandb", None)

    with pytest.raises(PackageError, match="wandb"):
        train(TrainRequest(Task(), 1, tmp_path, "fp32", logs=("wandb",)))
