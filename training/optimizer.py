"""The optimizer and the learning rate: AdamW by default, warmed up and decayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from demi.errors import InputError, missing_package
from demi.training.precision import Precision
from demi.training.task import Task, blaming

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW and its learning rate (Loshchilov and Hutter, arXiv 1711.05101)."""

    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: str = "constant"
    """After the warm-up: `constant`, or decaying to 0 at the last step as a line or as half a `cosine`."""
    warmup: int = 0
    """Steps in which the learning rate rises from 0."""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise InputError(f"unknown schedule `{self.schedule}`", hint=f"use one of {', '.join(SCHEDULES)}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"the learning rate is {self.lr}, not a number above 0", hint="try --lr 1e-3")


def make_optimizer(task: Task, model: nn.Module, settings: OptimizerSettings, precision: Precision) -> Optimizer:
    """Return the task's own optimizer, else AdamW; with weights in BF16, AdamW with Kahan summation.

    Kahan summation carries what each update loses to rounding into the next one (torch-optimi). Biases and the
    parameters of normalizations are not decayed. Raises InputError for an optimizer of the task's that is not one.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("the model has no parameter that requires a gradient", where="TASK", hint="train at least one")
    own: Callable[..., object] | None = getattr(task, "optimizer", None)
    if own is not None:
        with blaming("optimizer"):
            made = own(parameters)
        if not isinstance(made, Optimizer):
            raise InputError(
                f"the task's optimizer is a {type(made).__name__}", where="TASK", hint="return a torch.optim.Optimizer"
            )
        return made
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if precision.weights is torch.float32:
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    try:
        import optimi
    except ModuleNotFoundError as error:
        raise missing_package("torch-optimi", "train") from error
    # An epsilon of 1e-8 is far below the precision of BF16's second moment; optimi's own default is 1e-6.
    made = optimi.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=1e-6, kahan_sum=True, triton=False)
    assert isinstance(made, Optimizer)
    return made


class LearningRate:
    """Sets the learning rate of an optimizer as a pure function of the updates done: nothing to store or to resume."""

    def __init__(self, optimizer: Optimizer, settings: OptimizerSettings, updates: int) -> None:
        self._optimizer, self._settings, self._updates = optimizer, settings, updates
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))

    def set(self, update: int) -> float:
        """Set the rate for update number `update`, counted from 0, and return that of the first group."""
        factor = learning_rate_factor(self._settings, update, self._updates)
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return float(self._optimizer.param_groups[0]["lr"])


def learning_rate_factor(settings: OptimizerSettings, update: int, updates: int) -> float:
    """Return what the base learning rate is multiplied with at an update; `updates` is how many there are in all."""
    if update < settings.warmup:
        return (update + 1) / (settings.warmup + 1)
    done = (update - settings.warmup) / max(1, updates - settings.warmup)
    if settings.schedule == "linear":
        return max(0.0, 1 - done)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0
