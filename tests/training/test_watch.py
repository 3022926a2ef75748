"""The instruments on loops that are not ours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import demi
from demi.errors import DivergedError, InputError
from demi.training.logs import read_log
from demi.training.task import Position
from tests.training.tasks import BackwardOverflow, ForwardOverflow, Task


def loop(task, *, dtype=torch.bfloat16, steps=4, bad=(), model=None, scaler=None, accumulate=1, **options):
    """A plain PyTorch loop with two added lines; return the watch and the model."""
    torch.manual_seed(0)
    model = model or task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = iter(task.batches(Position(0, 0)))
    said: list[str] = []
    with demi.watch(model, optimizer, scaler=scaler, note=said.append, **options) as watch:
        for step in range(steps):
            for _ in range(accumulate):
                x, y = next(batches)
                x = x * torch.nan if step in bad else x
                with torch.autocast("cpu", dtype):
                    loss = task.loss(model, (x, y))
                (scaler.scale(loss) if scaler else loss).backward()
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            optimizer.zero_grad()
    return watch, model, said


def scaler(scale=1.0) -> torch.amp.GradScaler:
    """PyTorch's own, at some scale."""
    return torch.amp.GradScaler("cpu", init_scale=scale)


def finite(model: nn.Module) -> bool:
    """Return whether all of its weights and buffers are."""
    return all(bool(torch.isfinite(t).all()) for t in model.state_dict().values())


@pytest.mark.parametrize("with_scaler", [False, True])
def test_a_bad_batch_changes_nothing(with_scaler):
    """Neither weights nor BatchNorm, in bf16, which nothing guards by itself, or with a scaler."""
    watch, model, said = loop(Task(), bad=(1,), scaler=scaler() if with_scaler else None)

    assert (4, 3, {"batch": 1}) == (watch.steps, watch.updates, watch.skipped)
    assert finite(model)
    assert 3 == int(model[1].num_batches_tracked)
    assert said[0].startswith("step 2 was skipped: batch (batch[0])")


def test_without_the_watch_the_model_is_lost():
    """The same batch, nobody looking: the test above can fail."""
    model, task = Task().model(), Task()
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = next(iter(task.batches(Position(0, 0))))
    task.loss(model, (x * torch.nan, y)).backward()
    optimizer.step()

    assert not finite(model)


def test_steps_that_go_well_are_left_alone():
    """The weights are those of the bare loop, to the last bit."""
    _, watched, _ = loop(Task(), steps=5)
    torch.manual_seed(0)
    bare, task = Task().model(), Task()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-2)
    batches = iter(task.batches(Position(0, 0)))
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.loss(bare, next(batches))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), bare.parameters(), strict=True))


@pytest.mark.parametrize(
    ("task", "cause"),
    [
        (ForwardOverflow(), "forward in `1` (output), from values up to "),
        # The loss times 1e9: its gradient is beyond FP16 where it comes back to the model, with a scale of 1.
        (BackwardOverflow(), "backward (gradient of the model's output)"),
    ],
)
def test_cause_is_named(task, cause):
    """Module and tensor, as in our own loop."""
    _, _, said = loop(task, dtype=torch.float16, steps=1, scaler=scaler())
    assert cause in said[0]


def test_the_search_for_a_scale_is_benign():
    """Nothing is said."""
    watch, _, said = loop(Task(), dtype=torch.float16, steps=30, scaler=scaler(2.0**40))

    assert {"scale search"} == set(watch.skipped)
    assert [] == said


def test_parts_that_are_called_one_by_one():
    """The fault is named in the part it arises in, not in the one before it."""

    class Parts(ForwardOverflow):
        def loss(self, model, batch):
            x, y = batch
            return nn.functional.cross_entropy(model[3](model[2](model[1](model[0](x)))).float(), y)

    _, _, said = loop(Parts(), dtype=torch.float16, steps=1, scaler=scaler())
    assert "forward in `1` (output)" in said[0]


def test_a_closure():
    """An optimizer that computes the gradients itself is guarded as well."""
    model, task = Task().model(), Task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = next(iter(task.batches(Position(0, 0))))

    def closure():
        loss = task.loss(model, (x * torch.nan, y))
        loss.backward()
        return loss

    with demi.watch(model, optimizer, note=lambda _: None) as watch:
        optimizer.step(closure)
    assert finite(model)
    assert {"batch": 1} == watch.skipped


def test_the_log(tmp_path):
    """Unscaled norm, scale, skips and their cause, step by step."""
    loop(Task(), bad=(2,), scaler=scaler(8.0), log=tmp_path, accumulate=2)
    lines = read_log(tmp_path)

    assert [1, 2, 3, 4] == [line["step"] for line in lines]
    assert [8.0, 8.0, 8.0, 4.0] == [line["precision/scale"] for line in lines]
    assert 0 < lines[0]["precision/gradient_norm"] < 100
    assert "batch (batch[0])" in lines[2]["skip"]


def test_too_many_skips():
    """The loop ends instead of learning nothing."""
    with pytest.raises(DivergedError, match="2 steps in a row"):
        loop(Task(), bad=(0, 1, 2), max_skips=2)


def test_half_weights_with_a_scaler_are_refused():
    """Before the first step."""
    with pytest.raises(InputError, match="needs FP32 weights"):
        loop(Task(), model=Task().model().half(), scaler=scaler())


def test_nothing_stays_behind():
    """Hooks and methods are as they were."""
    model, grad_scaler = Task().model(), scaler()
    optimizer = torch.optim.SGD(model.parameters())
    demi.watch(model, optimizer, scaler=grad_scaler).close()

    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert {"step", "scale"}.isdisjoint(vars(grad_scaler))
