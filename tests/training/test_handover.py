"""From a run to a bundle: the trained model and real inputs, exported without another word."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from demi.cli.main import main
from demi.errors import InputError
from demi.plan import Reason, read_plan
from demi.training.handover import MODEL, SAMPLES
from demi.training.loop import train
from demi.training.request import TrainRequest
from tests.training.tasks import BatchWithNan, Task


@pytest.mark.slow
def test_a_run_becomes_a_bundle(tmp_path, capsys, monkeypatch):
    """Its folder is all that `demi export` needs; the samples are batches of the task, and the name is the run's."""
    monkeypatch.chdir(tmp_path)
    options = ["--steps", "20", "--precision", "bf16", "--save-model", "-o", "runs/sign", "--inspect-every", "0"]
    assert 0 == main(["train", "tests.training.tasks:task", *options, "--json"])
    capsys.readouterr()
    assert 0 == main(["export", "--fp16", "runs/sign", "--json"])
    found = json.loads(capsys.readouterr().out)

    assert ("runs/sign/samples", False) == (found["samples"]["origin"], found["samples"]["drawn"])
    assert (tmp_path / "models/sign").is_dir()


def test_the_program_gives_the_models_answers(tmp_path):
    """In evaluation mode and in FP32, on a batch of another size as well."""
    request = TrainRequest(Task(), 5, tmp_path, "bf16-pure", save_model=True)
    train(request)
    program = torch.export.load(tmp_path / MODEL).module()
    sample = np.load(tmp_path / SAMPLES / "0.npz")

    assert ["input"] == list(sample)
    assert (32, 8) == sample["input"].shape
    assert torch.float32 is program(input=torch.ones(5, 8)).dtype


def test_the_tasks_own_inputs(tmp_path):
    """Labels that the model takes in training are not served."""

    class WithLabels(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 2)

        def forward(self, x, labels=None):
            logits = self.net(x)
            return logits if labels is None else nn.functional.cross_entropy(logits, labels)

    class Labelled(Task):
        def model(self):
            return WithLabels()

        def loss(self, model, batch):
            return model(*batch)

        def inputs(self, batch):
            return {"x": batch[0]}

        def evaluate(self, model):
            return {}

    train(TrainRequest(Labelled(), 2, tmp_path, "fp32", save_model=True))
    assert (3, 2) == torch.export.load(tmp_path / MODEL).module()(x=torch.ones(3, 8)).shape


def test_a_model_that_is_not_called(tmp_path):
    """The method that is missing is named."""

    class Around(Task):
        def loss(self, model, batch):
            return model[0](batch[0]).float().mean()

    with pytest.raises(InputError, match="does not call the model") as caught:
        train(TrainRequest(Around(), 1, tmp_path, "fp32", save_model=True))
    assert "inputs(batch)" in caught.value.hint


class Rare(Task):
    """One batch of forty has an outlier, and training takes all of them."""

    outlier = 23

    def model(self):
        return nn.Sequential(nn.Linear(8, 16), Cubed(), nn.Linear(16, 2))

    def batches(self, position):
        for number, (x, y) in enumerate(super().batches(position), start=position.batch):
            yield (x * 30 if number == self.outlier else x), y


class Cubed(nn.Module):
    """The cube of a value, made small again."""

    def forward(self, x):
        return torch.tanh(x * x * x / 100)


def test_the_widest_batches_are_samples(tmp_path):
    """The batch with the outlier is found among all that were trained on; ranges.json names it for every module."""
    train(TrainRequest(Rare(), 40, tmp_path, "fp32", save_model=True, clip=1e-6))
    largest = [np.abs(np.load(path)["input"]).max() for path in sorted((tmp_path / SAMPLES).iterdir())]
    ranges = json.loads((tmp_path / "ranges.json").read_text())

    assert (8, True) == (len(largest), largest[0] > 60)
    assert {23} == {each["batch"] for name, each in ranges.items() if name in ("0", "2")}
    assert all(small < 8 for small in largest[1:])


def test_batches_of_a_long_run_are_drawn():
    """Each number at most once, from all of the run, and the same ones again."""
    from demi.training.reservoir import LOOKED_AT, _draw

    drawn = _draw(0, 10_000)
    assert LOOKED_AT == len(set(drawn))
    assert 8000 < max(drawn) < 10_000
    assert drawn == _draw(0, 10_000) != _draw(1, 10_000)
    assert [0, 1, 2] == sorted(_draw(0, 3))


def test_batches_that_training_skipped(tmp_path):
    """NaN is not a sample."""
    train(TrainRequest(BatchWithNan(), 4, tmp_path, "fp32", save_model=True))
    samples = [np.load(path)["input"] for path in (tmp_path / SAMPLES).iterdir()]

    assert 3 == len(samples)
    assert all(np.isfinite(sample).all() for sample in samples)


@pytest.mark.slow
def test_the_export_uses_the_rare_batch(tmp_path, capsys, monkeypatch):
    """A cube that overflows on one batch of forty stays FP32 in the plan; without that batch it is half."""
    monkeypatch.chdir(tmp_path)
    plans = {}
    for name, outlier in (("rare", 23), ("usual", -1)):
        task = Rare()
        task.outlier = outlier
        train(TrainRequest(task, 40, tmp_path / "runs" / name, "fp32", save_model=True, clip=1e-6))
        assert 0 == main(["export", "--fp16", f"runs/{name}", "--no-rescale", "--no-report", "--json"])
        plan = read_plan(tmp_path / f"models/{name}/1/plan.json")
        plans[name] = {decision.reason for decision in plan.decisions.values()}

    assert Reason.OVERFLOW in plans["rare"]
    assert Reason.OVERFLOW not in plans["usual"]
