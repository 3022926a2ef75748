"""Mistakes in a task, in a command and of a disk: each is an error in words, with a way out, and loses nothing."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from demi.cli.main import main
from demi.errors import InputError, PackageError
from demi.training.checkpoint import checkpoints
from demi.training.compare import compare
from demi.training.loop import train
from demi.training.optimizer import OptimizerSettings
from demi.training.request import TrainRequest
from demi.training.task import load_task
from tests.training.tasks import Task


def request(folder, task=None, steps=4, **options) -> TrainRequest:
    """A short run in FP32."""
    return TrainRequest(task or Task(), steps, folder, "fp32", **{"optimizer": OptimizerSettings(lr=1e-2)} | options)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full for larger files: the system refuses them in Python and in native code alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fail(*_):
    """Raise what no library foresees."""
    raise KeyError("labels")


class TestTask:
    """What the user's code may do."""

    @pytest.mark.parametrize("method", ["model", "optimizer"])
    def test_an_exception(self, tmp_path, method):
        """It is the user's, with file and line, and not a defect of ours."""
        bad = Task()
        setattr(bad, method, fail)
        with pytest.raises(InputError, match=f"the task's {method} raised KeyError: 'labels'") as caught:
            train(request(tmp_path, bad))
        assert "test_mistakes.py:" in caught.value.where

    @pytest.mark.parametrize("value", [torch.tensor(3), torch.tensor(1.0)], ids=["whole", "detached"])
    def test_a_loss_without_a_gradient(self, tmp_path, value):
        """PyTorch would only say that element 0 does not require grad."""
        bad = Task()
        bad.loss = lambda *_: value
        with pytest.raises(InputError, match="has no gradient"):
            train(request(tmp_path, bad))

    def test_no_model(self, tmp_path):
        """It says what came instead."""
        bad = Task()
        bad.model = lambda: None
        with pytest.raises(InputError, match="the task's model is a NoneType"):
            train(request(tmp_path, bad))

    @pytest.mark.parametrize(("batches", "words"), [([], "ended after 0"), (None, "returned a NoneType")])
    def test_no_batches(self, tmp_path, batches, words):
        """The data ends before the first step, or is none."""
        bad = Task()
        bad.batches = lambda _: batches
        with pytest.raises(InputError, match=words):
            train(request(tmp_path, bad))

    @pytest.mark.parametrize("value", ["high", torch.ones(3)], ids=["words", "three"])
    def test_a_metric_that_is_no_number(self, tmp_path, value):
        """It is named, and the weights are saved."""
        bad = Task()
        bad.evaluate = lambda _: {"accuracy": value}
        with pytest.raises(InputError, match="metric `accuracy` is not one number"):
            train(request(tmp_path, bad))
        assert checkpoints(tmp_path)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("nothing_here:Task", "in the folder that holds"),
            ("tests/training/tasks.py:Task", "tests.training.tasks:Task, without `.py`"),
            ("tests.training.tasks:Nothing", "an object with model()"),
        ],
    )
    def test_a_name(self, name, hint):
        """The hint is about this mistake."""
        with pytest.raises(InputError, match="cannot be made") as caught:
            load_task(name)
        assert hint in caught.value.hint

    def test_a_package_that_the_task_imports(self, tmp_path, monkeypatch):
        """It is the one to install, and not the task."""
        (tmp_path / "needs_more.py").write_text("import not_installed_at_all\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match="not_installed_at_all") as caught:
            load_task("needs_more:Task")
        assert "install the package that brings `not_installed_at_all`" in caught.value.hint


class TestDisk:
    """A disk that is full while a run is written."""

    def test_a_checkpoint(self, tmp_path):
        """The one before is still there, nothing half-written, and the run goes on from it afterwards."""
        run = request(tmp_path, steps=3)
        train(run)
        weights = max(each.stat().st_size for each in checkpoints(tmp_path)[0].iterdir())
        with files_of_at_most(weights - 1), pytest.raises(InputError, match=os.strerror(errno.EFBIG)) as caught:
            train(replace(run, steps=6, resume=True))

        assert "--resume" in caught.value.hint
        assert ["00000003"] == sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert 6 == train(replace(run, steps=6, resume=True)).steps

    def test_the_log(self, tmp_path):
        """It says which step is saved."""
        run = request(tmp_path, steps=3)
        train(run)
        size = (tmp_path / "log.jsonl").stat().st_size
        with (
            files_of_at_most(size + 10),
            pytest.raises(InputError, match="the run's files cannot be written") as caught,
        ):
            train(replace(run, steps=6, resume=True))

        assert "go on with --resume: step 3 is saved" in caught.value.hint

    def test_the_model(self, tmp_path):
        """No half-written program stays that an export would read."""
        run = request(tmp_path, steps=3)
        train(run)
        with files_of_at_most(8192), pytest.raises(InputError, match="cannot be written"):
            train(replace(run, save_model=True, resume=True))

        assert not (tmp_path / "model.pt2").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


class TestCommand:
    """Requests that cannot end well are refused before anything is trained."""

    def test_verify_resume_without_an_earlier_checkpoint(self, tmp_path, capsys):
        """The default of --save-every is more than these steps."""
        task = ["train", "tests.training.tasks:Task", "-o", str(tmp_path / "run")]

        assert 2 == main([*task, "--steps", "20", "--verify-resume"])
        assert "give a --save-every below 20" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_a_device_that_is_not_here(self, tmp_path, monkeypatch):
        """The hint names those that are."""
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with pytest.raises(InputError, match="the device `mps:7` cannot be used") as caught:
            train(request(tmp_path, device="mps:7"))
        assert caught.value.hint == "use cpu: PyTorch finds no GPU here"

    def test_an_unknown_metric(self, tmp_path):
        """No pair is trained for it."""
        with pytest.raises(InputError, match="no metric `f1`"):
            compare(request(tmp_path / "run"), 2, "f1")
        assert not (tmp_path / "run").exists()

    def test_wandb_is_not_in_an_extra(self, tmp_path, monkeypatch):
        """The hint brings the package."""
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(PackageError) as caught:
            train(request(tmp_path, logs=("wandb",)))
        assert "install it with: pip install wandb" == caught.value.hint

    @pytest.mark.parametrize("text", ["-1", "0", "fast"])
    def test_a_learning_rate(self, text, capsys):
        """The words are about what is asked for."""
        assert 2 == main(["train", "tests.training.tasks:Task", "--steps", "1", f"--lr={text}"])
        assert f"`{text}` is not a number above 0" in capsys.readouterr().err
