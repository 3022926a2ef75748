"""Ranges while a run trains: which steps are watched, what is remembered, and what `demi export` makes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from demi.cli.run_folder import wider_in_training
from demi.training.handover import SAMPLES
from demi.training.loop import train
from demi.training.request import TrainRequest
from demi.training.reservoir import ranges_of
from demi.training.running_ranges import EVERY, FILE, RunningRanges, Top
from tests.training.test_handover import Rare


def watched(running: RunningRanges, step: int, value: float) -> None:
    """A step of one module whose output is that value."""
    model = nn.Sequential(nn.Identity())
    with running.watching(model, step, 10 * step):
        model(torch.tensor([value, -torch.inf]))


def test_every_tenth_step():
    """The others are not watched; what is not finite does not count."""
    running = RunningRanges(100)
    watched(running, EVERY - 1, 7.0)
    assert {} == running.tops
    watched(running, EVERY, -5.0)
    assert {"0": Top(5.0, 100, 10)} == running.tops


def test_the_second_half_counts():
    """A larger value of early weights gives way; within a half the largest stays."""
    running = RunningRanges(100)
    for step, value in ((20, 900.0), (30, 2.0), (60, 3.0), (70, 8.0), (80, 4.0)):
        watched(running, step, value)

    assert {"0": Top(8.0, 700, 70)} == running.tops


def test_a_resumed_run_goes_on(tmp_path):
    """With what it had at its checkpoint; a damaged file counts for nothing, and a new run begins without."""
    running = RunningRanges(100)
    watched(running, 20, 5.0)
    running.save(tmp_path)

    assert {"0": Top(5.0, 200, 20)} == RunningRanges.open(tmp_path, 100, 30).tops
    assert {} == RunningRanges.open(tmp_path, 100, 10).tops
    assert {} == RunningRanges.open(tmp_path, 100, 0).tops
    (tmp_path / FILE).write_text('{"0": 3')
    assert {} == RunningRanges.open(tmp_path, 100, 30).tops


def test_the_record_beside_the_trained_model():
    """The trained model's range, and that in training with its step."""
    assert {} == ranges_of([], {"0": Top(5.0, 200, 20)})


@pytest.mark.parametrize(("outlier", "first"), [(139, True), (142, False)], ids=["watched", "not-watched"])
def test_a_batch_that_is_not_drawn_becomes_a_sample(tmp_path, monkeypatch, outlier, first):
    """Of 160 batches one is drawn; the outlier is found because its step was watched, and else is not."""
    monkeypatch.setattr("demi.training.reservoir.LOOKED_AT", 1)
    task = Rare()
    task.outlier = outlier
    train(TrainRequest(task, 160, tmp_path, "fp32", save_model=True, clip=1e-6))
    largest = [np.abs(np.load(path)["input"]).max() for path in sorted((tmp_path / SAMPLES).iterdir())]
    ranges = json.loads((tmp_path / "ranges.json").read_text())

    assert first == (largest[0] > 60)
    assert first == (ranges["0"]["in_training"] > 30)
    assert (tmp_path / FILE).is_file()


def test_a_run_that_saves_no_model_watches_nothing(tmp_path):
    """Nothing is written, and no hook runs."""
    train(TrainRequest(Rare(), 20, tmp_path, "fp32"))

    assert not (tmp_path / FILE).exists()


class TestNote:
    """The note of `demi export`."""

    def note(self, folder, **modules) -> list[str]:
        """What it says of a run with these ranges."""
        (folder / "ranges.json").write_text(json.dumps(modules))
        return list(wider_in_training(folder))

    def test_wider_in_training(self, tmp_path):
        """The widest module first, with its step; within the margin there is nothing to say."""
        wide = {"largest": 2.0, "in_training": 9.0, "at_step": 70, "batch": 3}
        (line,) = self.note(tmp_path, a={"largest": 2.0, "in_training": 2.9, "at_step": 60}, b=wide)

        assert "`b` (4.5 times, at step 70)" in line
        assert "`a`" not in line

    def test_nothing_to_say(self, tmp_path):
        """No ranges, none of training, or a file that is something else."""
        assert [] == self.note(tmp_path, a={"largest": 2.0, "batch": 3})
        (tmp_path / "ranges.json").write_text("[1]")
        assert [] == list(wider_in_training(tmp_path))
        assert [] == list(wider_in_training(tmp_path / "none"))
