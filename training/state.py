"""State of a training run: model, optimizer, loss scale and counters."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from demi.training.optimizer import LearningRate
from demi.training.precision import Precision
from demi.training.ranks import Ranks
from demi.training.rehearsal import cuda_autocast, rehearsing
from demi.training.task import Task


@dataclass(slots=True)
class Counters:
    """Counts of steps, updates and skips so far."""

    step: int = 0
    """Steps, those that were skipped included."""
    updates: int = 0
    """Steps that changed the weights."""
    batches: int = 0
    """Batches that each rank has taken."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Skipped steps by cause."""
    skipped_in_a_row: int = 0


@dataclass(slots=True)
class TrainState:
    """Everything that a step changes. Belongs to one thread."""

    task: Task
    model: nn.Module
    optimizer: Optimizer
    rate: LearningRate
    scaler: GradScaler
    precision: Precision
    device: torch.device
    counters: Counters = field(default_factory=Counters)
    ranks: Ranks = field(default_factory=Ranks)
    sharded: bool = False
    """True if the weights are shared out among the ranks (FSDP), which casts parameters itself."""
    rehearsed: bool = False
    """True if a GPU's numbers are computed on another device, which is faster where that has no half of its own."""

    @property
    def plain_model(self) -> nn.Module:
        """The user's model, without DDP around it."""
        found: nn.Module = getattr(self.model, "module", self.model) if self.ranks.world > 1 else self.model
        return found

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of forward and loss."""
        if self.sharded:
            return nullcontext()
        if self.rehearsed and self.precision.compute is not None:
            return cuda_autocast(self.device, self.precision.compute)
        return self.precision.autocast(self.device)

    def arithmetic(self) -> AbstractContextManager[object]:
        """Return the context of everything that computes in half, backward passes included."""
        return rehearsing() if self.rehearsed else nullcontext()

    @property
    def scale(self) -> float:
        """The loss scale; 1 in a precision that needs none."""
        return float(self.scaler.get_scale())

    def gradients(self) -> list[Tensor]:
        """Return the gradients that there are, of the parameters that the optimizer updates."""
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]

    def back_off(self) -> None:
        """Lower the loss scale after a skip that the scaler itself did not see: a NaN loss, or another rank's overflow.

        The count of steps without a skip begins anew, too, so that every rank goes on with the same scale.
        """
        before = self.scaler.state_dict()
        self.scaler.update()  # lets it forget this step
        if before:
            lower = before["scale"] * before["backoff_factor"]
            self.scaler.load_state_dict(before | {"scale": lower, "_growth_tracker": 0})


def make_scaler(precision: Precision, device: torch.device, init_scale: float, growth_interval: int) -> GradScaler:
    """Return PyTorch's dynamic loss scaler; in precisions that are not scaled it does nothing."""
    return GradScaler(device.type, init_scale=init_scale, growth_interval=growth_interval, enabled=precision.scaled)


class Buffers:
    """The buffers of a model, such as BatchNorm's statistics and its count of batches, as they were.

    A step that is skipped must leave no trace, and its forward pass may have put NaN into them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._saved = [
            (module, name, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the saved values back."""
        for module, name, saved in self._saved:
            found = module.get_buffer(name)
            if found.shape == saved.shape and found.dtype == saved.dtype:
                found.copy_(saved)
            else:
                setattr(module, name, saved.clone())
