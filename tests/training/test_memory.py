"""Bytes of training, counted by hand for a model of one layer, and what is halved."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from demi.training.loop import train
from demi.training.memory import FILE
from demi.training.request import TrainRequest
from tests.training.tasks import Task


class Deep(Task):
    """Two square layers: 2 x (64 x 64 + 64) parameters."""

    def model(self):
        """Without dropout."""
        return nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))


def counted(folder, precision: str, task=None):
    """The file that a run leaves."""
    train(TrainRequest(task or Deep(), 2, folder, precision, memory=True))
    return json.loads((folder / FILE).read_text())


PARAMETERS = 8 * 64 + 64 + 64 * 64 + 64 + 64 * 2 + 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_autocast_halves_no_weight(tmp_path, precision):
    """16 bytes a parameter: weight, gradient and two moments."""
    own = counted(tmp_path, precision)["own"]

    four = {"float32": 4 * PARAMETERS}
    assert (four, four, {"float32": 8 * PARAMETERS}) == (own["weights"], own["gradients"], own["optimizer"])


def test_pure_bf16(tmp_path):
    """2 bytes each for weight, gradient, two moments and Kahan's compensation."""
    found = counted(tmp_path, "bf16-pure")
    own, fp32 = found["own"], found["fp32"]

    two = {"bfloat16": 2 * PARAMETERS}
    assert (two, two, {"bfloat16": 6 * PARAMETERS}) == (own["weights"], own["gradients"], own["optimizer"])
    assert {"float32": 8 * PARAMETERS} == fp32["optimizer"]


def test_saved_activations_by_hand(tmp_path):
    """One linear layer in FP32 saves its input and, for the loss, the log-probabilities, the labels and a total weight."""

    class One(Task):
        def model(self):
            return nn.Linear(8, 2)

    own = counted(tmp_path, "fp32", One())["own"]["activations"]
    assert 32 * 8 * 4 + 32 * 2 * 4 + 4 == own["float32"]
    assert 32 * 8 == own["int64"]


def test_autocast_saves_less(tmp_path):
    """Half of the activations between the layers, at a batch that outweighs the copies of the weights."""

    class Wide(Deep):
        def batches(self, position):
            for x, y in super().batches(position):
                yield x.repeat(32, 1), y.repeat(32)

    found = counted(tmp_path, "bf16", Wide())
    own, fp32 = (sum(found[side]["activations"].values()) for side in ("own", "fp32"))
    assert 0.45 < own / fp32 < 0.65


def test_counting_leaves_no_trace(tmp_path):
    """The weights are those of a run without it."""
    plain = train(TrainRequest(Task(), 3, tmp_path / "a", "bf16"))
    watched = train(TrainRequest(Task(), 3, tmp_path / "b", "bf16", memory=True))

    assert plain.digest == watched.digest
    assert torch.is_grad_enabled()
