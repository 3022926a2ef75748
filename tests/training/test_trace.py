"""What must leave no trace in a run: a skipped step, an evaluation, the reading of data, the user's mistakes."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from demi.errors import DivergedError, InputError
from demi.training.checkpoint import checkpoints
from demi.training.loop import prepare, train
from demi.training.optimizer import OptimizerSettings
from demi.training.request import TrainRequest
from demi.training.step import gradient_norm, take_step
from tests.training.tasks import BatchWithNan, Task


def request(folder, task=None, steps=8, precision="fp32", **options) -> TrainRequest:
    """A short run."""
    return TrainRequest(task or Task(), steps, folder, precision, **{"optimizer": OptimizerSettings(lr=1e-2)} | options)


def test_a_skip_restores_every_buffer(tmp_path):
    """BatchNorm's count of batches, too, which is no floating-point number."""
    state = prepare(request(tmp_path, BatchWithNan()))
    x, y = next(iter(Task().batches(_start())))
    take_step(state, [(x, y)])
    outcome = take_step(state, [(x * torch.nan, y)])

    assert "batch" == outcome.skip.cause
    assert 1 == int(state.model[1].num_batches_tracked)


def _start():
    from demi.training.task import Position

    return Position(0, 0)


class Noisy(Task):
    """Augments its data with the global generators, as many tasks do."""

    def batches(self, position):
        """Noise from PyTorch, NumPy and Python."""
        for x, y in super().batches(position):
            yield x + torch.randn(()) + np.random.rand() + random.random(), y


def test_data_that_draws_global_random_numbers_resumes_bit_for_bit(tmp_path):
    """Its numbers follow from the seed and the batch, and dropout's from the run."""
    whole = request(tmp_path / "a", Noisy(), save_every=5)
    expected = train(whole)
    train(replace(whole, folder=tmp_path / "b"))
    shutil.rmtree(checkpoints(tmp_path / "b")[-1])

    assert expected.digest == train(replace(whole, folder=tmp_path / "b", resume=True)).digest


def test_augmentation_differs_from_batch_to_batch():
    """Numbers of its own are not the same numbers each time."""
    from demi.training.rng import own_numbers

    drawn = []
    for batch in (0, 1):
        with own_numbers(0, batch, 0):
            drawn.append((float(torch.rand(())), random.random(), np.random.rand()))
    assert all(first != second for first, second in zip(*drawn, strict=True))


def test_an_evaluation_draws_none_of_the_run(tmp_path):
    """The weights are the same however often the model is evaluated."""

    class Drawing(Task):
        def evaluate(self, model):
            return {"luck": float(torch.rand(()))}

    seldom = train(request(tmp_path / "a", Drawing()))
    often = train(request(tmp_path / "b", Drawing(), evaluate_every=2))

    assert seldom.digest == often.digest


def test_an_evaluation_is_logged_once(tmp_path):
    """Also when a run that is done is resumed."""
    from demi.training.logs import read_log

    train(request(tmp_path))
    train(request(tmp_path, resume=True))

    assert 1 == sum("evaluation/accuracy" in line for line in read_log(tmp_path))


def test_another_seed_is_refused(tmp_path):
    """A run does not go on with other data."""
    train(request(tmp_path, steps=2, seed=3))

    with pytest.raises(InputError, match="begun with seed 3"):
        train(request(tmp_path, steps=4, resume=True))


@pytest.mark.parametrize("method", ["loss", "batches", "evaluate"])
def test_the_tasks_own_errors(tmp_path, method):
    """They are the user's, with file and line, and not a defect of ours."""

    def fail(*_):
        raise KeyError("labels")

    bad = Task()
    setattr(bad, method, fail)
    with pytest.raises(InputError, match="raised KeyError: 'labels'") as caught:
        train(request(tmp_path, bad, steps=1))
    assert "test_trace.py:" in caught.value.where


@pytest.mark.parametrize(("value", "what"), [(torch.ones(2), "shape \\(2,\\)"), (1.5, "a float")])
def test_a_loss_that_is_not_one_number(tmp_path, value, what):
    """It is described."""
    bad = Task()
    bad.loss = lambda *_: value
    with pytest.raises(InputError, match=what):
        train(request(tmp_path, bad, steps=1))


def test_normalizations_and_buffers_stay_in_fp32(tmp_path):
    """With BF16 weights, running statistics would lose most of their digits."""
    state = prepare(request(tmp_path, precision="bf16-pure"))

    assert torch.bfloat16 is state.model[0].weight.dtype
    assert {torch.float32} == {state.model[1].weight.dtype, state.model[1].running_var.dtype}


def test_the_norm_of_bf16_gradients_is_fp32():
    """Rounded to BF16 it would be off by up to 0.4%."""
    gradients = [torch.full((1000,), 0.01, dtype=torch.bfloat16), torch.ones(7, dtype=torch.bfloat16)]
    exact = float(torch.cat([g.double() for g in gradients]).norm())

    assert exact == pytest.approx(gradient_norm(gradients), rel=1e-5)


def test_gradients_whose_norm_overflows(tmp_path):
    """Each is finite and their sum of squares is not: a cause of its own."""

    class Steep(Task):
        def loss(self, model, batch):
            return super().loss(model, batch) * 1e28

    with pytest.raises(DivergedError, match="gradient norm: every gradient is finite"):
        train(request(tmp_path, Steep(), max_skips=1))


def test_a_skip_begins_the_growth_of_the_scale_anew(tmp_path):
    """Also one that the scaler did not see: else ranks of which one overflowed would part."""
    state = prepare(request(tmp_path, precision="fp16", growth_interval=3, init_scale=8.0))
    x, y = next(iter(Task().batches(_start())))
    take_step(state, [(x, y)])
    assert 1 == state.scaler.state_dict()["_growth_tracker"]
    take_step(state, [(x * torch.nan, y)])

    assert {"scale": 4.0, "_growth_tracker": 0}.items() <= state.scaler.state_dict().items()
