"""From a run to a bundle: the trained model and real inputs, exported without another word."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from demi.cli.main import main
from demi.errors import InputError
from demi.training.handover import MODEL, SAMPLES
from demi.training.loop import train
from demi.training.request import TrainRequest
from tests.training.tasks import Task


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
