"""One training step: forward, backward, a look at the gradients, and an update or a reason for none."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from demi.training import ranks
from demi.training.inspection import Inspection, Weights, inspect_gradients
from demi.training.rng import RandomState
from demi.training.skips import Root, Skip, find_cause
from demi.training.state import Buffers, TrainState
from demi.training.task import Batch, call_loss


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a step."""

    loss: float
    """Mean over its batches and over all ranks, in FP32."""
    gradient_norm: float
    """L2 norm of all gradients, unscaled and before clipping."""
    scale: float
    """The loss scale that the step ran with."""
    lr: float
    skip: Skip | None = None
    """Reason why the weights were not updated."""
    inspection: Inspection | None = None
    """The step beside the same one in FP32, where that was asked for."""


def take_step(
    state: TrainState, batches: Sequence[Batch], clip: float | None = None, *, inspect: bool = False
) -> Outcome:
    """Train on a step's batches, whose gradients are accumulated in the weights' type, and return what happened.

    The weights are updated when the loss and all gradients are finite on every rank, in every precision; else nothing
    changes but the loss scale, and the cause is looked for. With `inspect`, a step that updates is compared with FP32.
    """
    scale, lr = state.scale, state.rate.set(state.counters.updates)
    before, buffers = RandomState.capture(), Buffers(state.plain_model)
    last = len(batches) - 1
    loss = math.fsum(
        _backward(state, batch, len(batches), is_last=index == last) for index, batch in enumerate(batches)
    )
    state.scaler.unscale_(state.optimizer)
    norm = gradient_norm(state.gradients())
    skip = inspection = None
    if ranks.all_true(math.isfinite(norm) and math.isfinite(loss), state.device):
        if inspect:
            inspection = inspect_gradients(state, batches, before, buffers, loss, scale)
        _clip(state, norm, clip)
        weights = Weights(state) if inspection is not None else None
        state.scaler.step(state.optimizer)
        if inspection is not None and weights is not None:
            unchanged, quality = weights.compare()
            inspection = replace(inspection, unchanged=unchanged, descent_quality=quality)
        state.scaler.update()
        state.counters.updates += 1
        state.counters.skipped_in_a_row = 0
    else:
        after = RandomState.capture()
        skip = find_cause(StepAgain(state, batches, before, buffers, scale))
        after.restore()
        state.back_off()
        _count(state, skip)
    _drop_gradients(state)
    state.counters.step += 1
    state.counters.batches += len(batches)
    return Outcome(ranks.mean(loss, state.device), norm, scale, lr, skip, inspection)


@dataclass(frozen=True, slots=True)
class StepAgain:
    """A step of the loop, to be run again by `find_cause`."""

    state: TrainState
    inputs: Sequence[Batch]
    before: RandomState
    buffers: Buffers
    scale: float

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self.state.plain_model

    @property
    def together(self) -> bool:
        """With FSDP every pass gathers weights from all ranks."""
        return self.state.sharded

    @property
    def chained(self) -> bool:
        """Each batch stands by itself."""
        return False

    def rewind(self) -> None:
        """Put random numbers and buffers where the step began, and drop the gradients."""
        self.before.restore()
        self.buffers.restore()
        _drop_gradients(self.state)

    def forward(self, index: int, scale: float, *, half: bool = True) -> Root:
        """Return one batch's share of the loss, scaled."""
        with self.state.autocast() if half else contextlib.nullcontext():
            loss = call_loss(self.state.task, self.model, self.inputs[index])
        return Root([loss.float() / len(self.inputs) * scale])


def _backward(state: TrainState, batch: Batch, count: int, *, is_last: bool) -> float:
    """Add the gradients of one of `count` batches, and return its share of the loss."""
    with contextlib.nullcontext() if is_last else _without_sync(state.model):
        with state.autocast():
            loss = call_loss(state.task, state.model, batch)
        share = loss.float() / count
        state.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
    return float(share.detach())


def _without_sync(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Keep DDP from reducing gradients that are not complete yet."""
    no_sync = getattr(model, "no_sync", None)
    return no_sync() if no_sync is not None else contextlib.nullcontext()


def _drop_gradients(state: TrainState) -> None:
    """Drop all gradients, also of parameters that the task's own optimizer does not know."""
    state.optimizer.zero_grad(set_to_none=True)
    state.plain_model.zero_grad(set_to_none=True)


def _clip(state: TrainState, norm: float, most: float | None) -> None:
    """Scale the gradients, whose norm is known, down to a norm of at most `most`."""
    if most is not None and norm > most:
        torch._foreach_mul_(state.gradients(), most / (norm + 1e-6))


def gradient_norm(gradients: Sequence[Tensor]) -> float:
    """Return the L2 norm of all gradients, computed in FP32 whatever their type, over all ranks where they are shared."""
    if not gradients:
        return 0.0
    if any(hasattr(gradient, "full_tensor") for gradient in gradients):
        total: Any = torch.nn.utils.get_total_norm(gradients)
        return float(total.full_tensor())
    norms = torch._foreach_norm(list(gradients), 2, dtype=torch.float32)
    return float(torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms])))


def _count(state: TrainState, skip: Skip) -> None:
    counters = state.counters
    counters.skipped[skip.cause] = counters.skipped.get(skip.cause, 0) + 1
    counters.skipped_in_a_row += 1
