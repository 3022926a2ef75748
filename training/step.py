"""One training step: forward, backward, a look at the gradients, and an update or a reason for none."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from demi.training.rng import RandomState
from demi.training.skips import Skip, find_cause
from demi.training.state import Buffers, TrainState
from demi.training.task import Batch


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step did."""

    loss: float
    """Mean over its batches, in FP32."""
    gradient_norm: float
    """L2 norm of all gradients, unscaled and before clipping."""
    scale: float
    """The loss scale that the step ran with."""
    lr: float
    skip: Skip | None = None
    """Why the weights were not updated."""


def take_step(state: TrainState, batches: Sequence[Batch], clip: float | None = None) -> Outcome:
    """Train on a step's batches, whose gradients are accumulated in the weights' type, and return what happened.

    The weights are updated when the loss and all gradients are finite, in every precision; else nothing changes but the
    loss scale, and the cause is looked for.
    """
    scale, lr = state.scale, state.rate.set(state.counters.updates)
    before, buffers = RandomState.capture(), Buffers(state.model)
    loss = math.fsum(_backward(state, batch, len(batches), is_last=batch is batches[-1]) for batch in batches)
    state.scaler.unscale_(state.optimizer)
    norm = _clip(state, clip)
    skip = None
    if _agreed(math.isfinite(norm) and math.isfinite(loss), state.device):
        state.scaler.step(state.optimizer)
        state.counters.updates += 1
        state.counters.skipped_in_a_row = 0
    else:
        after = RandomState.capture()
        buffers.restore()
        skip = find_cause(state, batches, before, buffers)
        after.restore()
        _count(state, skip)
    _update_scale(state, skipped=skip is not None)
    state.optimizer.zero_grad(set_to_none=True)
    state.counters.step += 1
    state.counters.batches += len(batches)
    return Outcome(loss, norm, scale, lr, skip)


def _backward(state: TrainState, batch: Batch, count: int, *, is_last: bool) -> float:
    """Add the gradients of one of `count` batches, and return its share of the loss."""
    with contextlib.nullcontext() if is_last else _without_sync(state.model):
        with state.precision.autocast(state.device):
            loss = state.task.loss(state.model, batch)
        share = loss.float() / count
        state.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
    return float(share.detach())


def _without_sync(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Keep DDP from reducing gradients that are not complete yet."""
    no_sync = getattr(model, "no_sync", None)
    return no_sync() if no_sync is not None else contextlib.nullcontext()


def _clip(state: TrainState, most: float | None) -> float:
    """Scale the gradients down to a norm of at most `most`; return the norm that they had."""
    gradients = state.gradients()
    norm = torch.nn.utils.get_total_norm(gradients)
    if hasattr(norm, "full_tensor"):  # sharded over ranks
        norm = norm.full_tensor()
    value = float(norm)
    if most is not None and math.isfinite(value) and value > most:
        torch._foreach_mul_(gradients, most / (value + 1e-6))
    return value


def _agreed(is_finite: bool, device: torch.device) -> bool:
    """Whether every rank's loss and gradients are finite: all of them update, or none does."""
    if not torch.distributed.is_initialized():
        return is_finite
    flag = torch.tensor(float(is_finite), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)


def _update_scale(state: TrainState, *, skipped: bool) -> None:
    """Let the loss scale grow or back off, also for a skip that the scaler did not see itself, such as a NaN loss."""
    scale = state.scale
    state.scaler.update()
    if skipped and state.precision.scaled and state.scale >= scale:
        state.scaler.update(scale * state.scaler.get_backoff_factor())


def _count(state: TrainState, skip: Skip) -> None:
    counters = state.counters
    counters.skipped[skip.cause] = counters.skipped.get(skip.cause, 0) + 1
    counters.skipped_in_a_row += 1
