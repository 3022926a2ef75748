"""A model's weights for a repair: each tensor times a learned power of two, a bias also with a learned shift.

Ranges leave a type by factors, which single weights approach slowly and not together. One factor for a whole tensor moves
them at once, and a shift moves what an exponential multiplies; most of a repair is found among these few numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

WEIGHTS_SHARE = 0.01
"""A step of a weight, relative to its tensor's root mean square, as a share of a step of a factor's exponent."""


class ScaledWeights:
    """Trainable weights, factors and shifts of a model, which itself stays as it is until `fold`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        self._bits = {name: torch.zeros((), device=p.device, requires_grad=True) for name, p in self._weights.items()}
        self._shifts = {
            name: torch.zeros((), device=p.device, requires_grad=True)
            for name, p in self._weights.items()
            if name.rpartition(".")[2].endswith("bias")
        }

    def values(self) -> dict[str, Tensor]:
        """Return the weights as they are now, by name."""
        return {
            name: weight * self._bits[name].exp2() + self._shifts.get(name, 0.0)
            for name, weight in self._weights.items()
        }

    def call(self, values: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Any:
        """Run the model with such weights."""
        return functional_call(self._model, dict(values), (), dict(inputs))

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return parameters for an optimizer whose steps have the size of `lr`, in bits: Adam's do."""
        scaled = [{"params": [*self._bits.values(), *self._shifts.values()], "lr": lr}]
        sizes = {name: float(weight.detach().square().mean().sqrt()) for name, weight in self._weights.items()}
        return scaled + [
            {"params": [weight], "lr": lr * WEIGHTS_SHARE * sizes[name]}
            for name, weight in self._weights.items()
            if sizes[name] > 0
        ]

    @torch.no_grad()
    def fold(self) -> None:
        """Write the weights into the model."""
        values = self.values()
        for name, parameter in self._model.named_parameters():
            parameter.copy_(values[name])
