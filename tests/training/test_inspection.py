"""A step beside the same step in FP32: its errors, what a scale loses, what rounding takes, and no trace in the run."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from demi.training.inspection import FILE, LOWEST, SAMPLED, _Flow
from demi.training.logs import read_log
from demi.training.loop import prepare, train
from demi.training.optimizer import OptimizerSettings
from demi.training.request import TrainRequest
from demi.training.step import take_step
from demi.training.task import Position
from tests.training.tasks import Task


def inspected(folder, task=None, precision="fp16", steps=1, **options):
    """The inspection of a run's last step."""
    state = prepare(TrainRequest(task or Task(), 9, folder, precision, **options))
    batches = iter(state.task.batches(Position(0, 0)))
    for _ in range(steps):
        outcome = take_step(state, [next(batches), next(batches)], 1.0, inspect=True)
    return outcome.inspection


class Smooth(Task):
    """Without ReLU, which a rounding may switch."""

    def model(self):
        """Two layers and dropout."""
        return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 2))


@pytest.mark.parametrize(("precision", "low", "high"), [("fp16", 1e-5, 2e-3), ("bf16", 1e-3, 2e-2)])
def test_errors_of_gradients(tmp_path, precision, low, high):
    """BF16 has 8 bits and FP16 11: about 2**-9 and 2**-12, with dropout drawn alike; each layer has its own."""
    found = inspected(tmp_path, Smooth(), precision)
    layers = {layer.name: layer for layer in found.layers}

    assert low < found.error < high
    assert found.cosine == pytest.approx(1, abs=1e-3)
    assert {"0", "3", "0 (output)"} <= set(layers)
    assert found.loss == pytest.approx(found.fp32_loss, rel=1e-2)


def test_what_a_scale_loses(tmp_path):
    """Gradients of the loss times 1e-9 vanish in FP16 without a scale, and the recommended one brings them back."""

    class Faint(Smooth):
        def loss(self, model, batch):
            return super().loss(model, batch) * 1e-9

    without = inspected(tmp_path / "a", Faint(), init_scale=1.0)
    then = inspected(tmp_path / "b", Faint(), init_scale=without.recommended_scale)

    assert without.lost > 0.99
    assert without.error > 0.9
    assert then.lost < 0.05
    assert then.error < 0.01
    assert 1.9 <= then.headroom <= 3.1


def test_the_histogram_by_hand(tmp_path):
    """The mean of four outputs: each has the gradient 1/4, shared by two batches 1/8, which is 2**-3."""

    class Four(Task):
        def model(self):
            return nn.Linear(8, 4)

        def loss(self, model, batch):
            return model(batch[0][:1]).float().mean()

    assert {-3: 8} == inspected(tmp_path, Four()).histogram


def test_large_gradients_are_sampled():
    """Every fourth of 4 x 65,536 elements counts for four; the largest one is found wherever it is, and infinities are none."""
    gradient = torch.full((4, SAMPLED), 0.5)
    gradient[1, 1], gradient[2, 2] = 3.0, torch.inf
    flow = _Flow()
    flow.add(gradient)

    assert (3.0, 4 * SAMPLED) == (flow.largest, flow.total + 4 * int(gradient.flatten()[::4].isinf().sum()))
    assert flow.total == int(flow.counts[-1 - LOWEST])


def test_updates_lost_to_rounding(tmp_path):
    """With BF16 weights and a small learning rate most updates are below the last bit; Kahan carries them on."""
    small = OptimizerSettings(lr=1e-6, weight_decay=0.0)
    pure = inspected(tmp_path / "a", precision="bf16-pure", optimizer=small)
    full = inspected(tmp_path / "b", precision="bf16", optimizer=small)

    assert pure.unchanged > 0.5
    assert full.unchanged < 0.1
    assert pure.descent_quality < 0.5
    assert full.descent_quality is None


@pytest.mark.parametrize("precision", ["fp16", "bf16", "bf16-pure"])
def test_it_leaves_no_trace(tmp_path, precision):
    """The weights are those of a run without it, dropout and BatchNorm included."""
    without = train(TrainRequest(Task(), 5, tmp_path / "a", precision))
    every = train(TrainRequest(Task(), 5, tmp_path / "b", precision, inspect_every=1))

    assert without.digest == every.digest


def test_what_is_written(tmp_path):
    """A summary in the log, and all of it in a file of its own."""
    train(TrainRequest(Task(), 4, tmp_path, "bf16", inspect_every=2))
    lines = {line["step"]: line for line in read_log(tmp_path) if "loss" in line}
    whole = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]

    assert [2, 4] == [step for step, line in lines.items() if "precision/shadow_error" in line]
    assert [2, 4] == [line["step"] for line in whole]
    assert math.isfinite(lines[2]["precision/underflow_share"])


def test_fp32_is_not_inspected(tmp_path):
    """There is nothing to compare."""
    train(TrainRequest(Task(), 2, tmp_path, "fp32", inspect_every=1))
    assert not (tmp_path / FILE).exists()
    assert torch.is_grad_enabled()
