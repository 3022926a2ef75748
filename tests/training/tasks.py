"""Small tasks: each learns in seconds, and some are ill on purpose."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from demi.training.task import Position

Pair = tuple[Tensor, Tensor]
WEIGHTS = torch.linspace(-1, 1, 8)


class Task:
    """Classify the sign of a weighted sum, with dropout and BatchNorm on the way: both have state that a resume needs."""

    def model(self) -> nn.Module:
        """A small network."""
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))

    def batches(self, position: Position) -> Iterator[Pair]:
        """Endless batches, each made from its own number."""
        number = position.batch
        while True:
            generator = torch.Generator().manual_seed((position.seed * 1000 + number) * position.world + position.rank)
            x = torch.randn(32, 8, generator=generator)
            yield x, (x @ WEIGHTS > 0).long()
            number += 1

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """Cross-entropy."""
        x, y = batch
        return nn.functional.cross_entropy(model(x).float(), y)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The share of right answers on new data."""
        x = torch.randn(512, 8, generator=torch.Generator().manual_seed(99))
        return {"accuracy": float((model(x).argmax(1) == (x @ WEIGHTS > 0)).float().mean())}


class ForwardOverflow(Task):
    """An activation passes FP16's 65,504 in one module."""

    def model(self) -> nn.Module:
        """The second linear layer's products are large, and a normalization brings them back."""
        large = nn.Linear(16, 16)
        nn.init.constant_(large.weight, 2000.0)
        nn.init.constant_(large.bias, 0.0)
        first = nn.Linear(8, 16)
        nn.init.constant_(first.weight, 1.0)
        return nn.Sequential(first, large, nn.LayerNorm(16), nn.Linear(16, 2))


class BatchWithNan(Task):
    """The third batch holds NaN."""

    def batches(self, position: Position) -> Iterator[Pair]:
        """As they are but for that one."""
        for number, (x, y) in enumerate(super().batches(position), start=position.batch):
            if number == 2:
                x[3, 4] = torch.nan
            yield x, y


class BadLoss(Task):
    """The loss takes the logarithm of zero."""

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """Minus infinity, times a sum that needs the gradient."""
        x, _ = batch
        return model(x).float().sum() * torch.log(torch.zeros(()))


class BadWeight(Task):
    """A weight is infinite before the first step."""

    def model(self) -> nn.Module:
        """The network with that weight in its last layer."""
        network = super().model()
        with torch.no_grad():
            network[4].weight[0, 0] = torch.inf
        return network


class BackwardOverflow(Task):
    """A gradient leaves FP16's range whatever the loss scale."""

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """A loss so steep that its gradient is beyond 65,504 on its way into the last layer's product."""
        return super().loss(model, batch) * 1e9


class Masked(Task):
    """Minus infinity in a mask, as attention has it: no fault at all."""

    def model(self) -> nn.Module:
        """A network that masks half of its scores before a Softmax module."""
        return _Masked()


class _Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score, self.soft, self.last = nn.Linear(8, 16), nn.Softmax(-1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, masked, to weights, to classes."""
        scores = self.score(x).masked_fill(torch.arange(16) > 7, -torch.inf)
        return self.last(self.soft(scores))


def factory() -> Task:
    """A task from a function."""
    return Task()


task = Task()
not_a_task = object()


def broken() -> Task:
    """A task that cannot be made."""
    raise RuntimeError("no data here")


class OverflowOnRank1(Task):
    """The third batch of the second rank holds NaN. No BatchNorm, whose statistics FSDP does not share out."""

    def model(self) -> nn.Module:
        """A small network with dropout."""
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))

    def batches(self, position: Position) -> Iterator[Pair]:
        """As they are but for that one."""
        for number, (x, y) in enumerate(super().batches(position), start=position.batch):
            if number == 2 and position.rank == 1:
                x[3, 4] = torch.nan
            yield x, y


class NoBuffers(OverflowOnRank1):
    """The same with good data."""

    def batches(self, position: Position) -> Iterator[Pair]:
        """Good ones."""
        return Task.batches(self, position)


class Forgetful(Task):
    """Begins its data anew whatever the position."""

    def batches(self, position: Position) -> Iterator[Pair]:
        """From the first batch on."""
        return super().batches(Position(position.seed, 0))


overflow_on_rank_1 = OverflowOnRank1()
no_buffers = NoBuffers()
