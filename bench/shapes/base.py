"""The class of a shape, and functions that draw inputs of the usual kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Feeds = dict[str, Any]

ROWS = 4
"""Rows of token ids in one set of inputs."""


@dataclass(frozen=True)
class Shape:
    """A module in eval mode, and how to draw its inputs."""

    module: torch.nn.Module
    draw: Callable[[np.random.Generator], Feeds]
    """Keyword arguments as NumPy arrays, with two rows or more."""


class First(torch.nn.Module):
    """A transformers model that returns its first output, or its first few, and keeps no cache."""

    def __init__(self, model: torch.nn.Module, *names: str, outputs: int = 1, **fixed: Any) -> None:
        super().__init__()
        self.model, self.names, self.outputs, self.fixed = model, names, outputs, fixed

    def forward(self, *args: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The model's first outputs for the named inputs."""
        found = self.model(**dict(zip(self.names, args, strict=True)), **self.fixed, return_dict=False)
        return found[0] if self.outputs == 1 else found[: self.outputs]


def tokens(vocabulary: int, length: int, mask: bool = False) -> Callable[[np.random.Generator], Feeds]:
    """Token ids, and a mask that ends one row early."""

    def draw(rng: np.random.Generator) -> Feeds:
        feeds: Feeds = {"input_ids": rng.integers(1, vocabulary, (ROWS, length))}
        if mask:
            feeds["attention_mask"] = (np.arange(length) < rng.integers(length // 2, length + 1, (ROWS, 1))).astype(
                np.int64
            )
        return feeds

    return draw


def floats(name: str, *shape: int) -> Callable[[np.random.Generator], Feeds]:
    """Standard normal floats."""
    return lambda rng: {name: rng.standard_normal(shape).astype(np.float32)}


def together(*draws: Callable[[np.random.Generator], Feeds]) -> Callable[[np.random.Generator], Feeds]:
    """Several inputs, drawn one after another."""
    return lambda rng: {name: array for draw in draws for name, array in draw(rng).items()}
