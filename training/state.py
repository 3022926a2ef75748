"""What a training run owns: model, optimizer, loss scale and counters."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from demi.training.optimizer import LearningRate
from demi.training.precision import Precision
from demi.training.task import Task


@dataclass(slots=True)
class Counters:
    """What has been done so far."""

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

    @property
    def scale(self) -> float:
        """The loss scale; 1 in a precision that needs none."""
        return float(self.scaler.get_scale())

    def gradients(self) -> list[Tensor]:
        """Return the gradients that there are, of the parameters that the optimizer updates."""
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]


def make_scaler(precision: Precision, device: torch.device, init_scale: float, growth_interval: int) -> GradScaler:
    """Return PyTorch's dynamic loss scaler; in precisions that are not scaled it does nothing."""
    return GradScaler(device.type, init_scale=init_scale, growth_interval=growth_interval, enabled=precision.scaled)


class Buffers:
    """The floating-point buffers of a model, such as BatchNorm's statistics, as they were.

    A step that is skipped must leave no trace, and its forward pass may have put NaN into them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._saved = [(buffer, buffer.clone()) for buffer in model.buffers() if buffer.is_floating_point()]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the saved values back."""
        for buffer, saved in self._saved:
            buffer.copy_(saved)
