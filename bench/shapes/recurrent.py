"""Recurrent shapes."""

from __future__ import annotations

import torch

from bench.shapes.base import Shape, floats


class Recurrent(torch.nn.Module):
    """Two recurrent layers with a linear head."""

    def __init__(self, kind: type[torch.nn.LSTM] | type[torch.nn.GRU]) -> None:
        super().__init__()
        self.layers = kind(64, 128, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(128, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores for each step."""
        states, _ = self.layers(x)
        return self.head(states)


def lstm() -> Shape:
    """A recurrent tagger."""
    return Shape(Recurrent(torch.nn.LSTM), floats("x", 4, 24, 64))


def gru() -> Shape:
    """A recurrent tagger with gates that reset."""
    return Shape(Recurrent(torch.nn.GRU), floats("x", 4, 24, 64))
