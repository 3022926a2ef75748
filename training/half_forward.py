"""A forward pass through half, every tensor of it: rounded, with straight-through gradients, and measured.

It differs from autocast and from a rehearsal in that every operator stores its result in FP16, as an exported model does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from demi.training.module_precision import ROOT
from demi.training.scaled_weights import ScaledWeights
from demi.training.task import tensors_of

LARGEST = 65504.0
MASK = 2.0**100
"""Magnitudes from here on are masks, such as -inf and FP32's lowest number, which half clamps without harm."""


AMPLIFYING = {
    "exp": 3, "exp2": 3, "expm1": 3, "pow": 1, "square": 1, "div": 1, "truediv": 1, "reciprocal": 1, "rsqrt": 1,
    "softplus": 1,
}  # fmt: skip
"""Bits more below the limit for functions whose results grow faster than their inputs, as `demi export` wants them."""


@dataclass(frozen=True, slots=True)
class Reached:
    """The largest magnitude of a tensor, and the one that fits."""

    size: float
    limit: float

    @property
    def share(self) -> float:
        """Its share of the limit; above 1 it does not fit."""
        return self.size / self.limit


@dataclass(slots=True)
class Ranges:
    """The largest magnitudes of forward passes, by the function and the module that made them."""

    trained: dict[str, Reached] = field(default_factory=dict)
    fixed: dict[str, Reached] = field(default_factory=dict)
    """Of tensors that no weight can change."""

    def note(self, place: str, reached: Reached, *, trained: bool) -> None:
        """Add one tensor."""
        found = self.trained if trained else self.fixed
        if place not in found or reached.share > found[place].share:
            found[place] = reached

    def merge(self, other: Ranges) -> Ranges:
        """Return the ranges of both."""
        both = Ranges(dict(self.trained), dict(self.fixed))
        for trained, found in ((True, other.trained), (False, other.fixed)):
            for place, reached in found.items():
                both.note(place, reached, trained=trained)
        return both

    def worst(self) -> tuple[str, Reached]:
        """Return the tensor that fits least of those that weights can change, and its place."""
        return max(self.trained.items(), key=lambda each: each[1].share, default=(ROOT, Reached(0.0, math.inf)))


class HalfForward(TorchFunctionMode):
    """Inside this mode every floating-point result is rounded to FP16, and its excess over a range is added up.

    The excess of a tensor t is the mean over its elements of relu(log2|t| - bits)^2. Beyond the largest FP16 a value is
    clamped and passes no gradient: only the excess pulls it back. With `slack`, the range is that many bits wider at its
    upper end, and so is the one that fits: half with the digits of FP16 and more exponents.
    """

    def __init__(self, bits: float, slack: float = 0.0) -> None:
        super().__init__()
        self.bits, self.largest = bits + slack, LARGEST * 2.0**slack
        self.ranges = Ranges()
        self.excess: list[Tensor] = []
        self._path = [ROOT]

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        place, bits = f"`{name}` in `{self._path[-1]}`", self.bits - AMPLIFYING.get(name, 0)
        if isinstance(found, Tensor):
            return self.stored(found, place, bits)
        if type(found) is tuple and any(isinstance(each, Tensor) for each in found):
            return tuple(self.stored(each, place, bits) if isinstance(each, Tensor) else each for each in found)
        return found

    def stored(self, tensor: Tensor, place: str, bits: float) -> Tensor:
        """Return a tensor rounded, after its range and its excess over 2^bits were noted."""
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        size = tensor.detach().abs()
        largest = float(torch.where(size < MASK, size, 0.0).max())
        if not tensor._is_view():
            self.ranges.note(place, Reached(largest, 2.0**bits), trained=tensor.requires_grad)
        if not tensor.requires_grad:
            return tensor
        if largest > 2.0**bits:
            self.excess.append(excess(tensor, bits))
        return straight_through(tensor, self.largest)

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Know which module is running, inside this block."""
        handles = []
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._path.append(name)))
                handles.append(module.register_forward_hook(lambda *_: void(self._path.pop()), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def void(_: object) -> None:
    """Drop a result: what a hook returns replaces the module's."""


def excess(tensor: Tensor, bits: float) -> Tensor:
    """Return the mean over the elements of relu(log2|t| - bits)^2; masks have none."""
    size = tensor.abs()
    beyond = (size > 2.0**bits) & (size < MASK)
    return (torch.where(beyond, size, 2.0**bits).log2() - bits).square().mean()


def straight_through(tensor: Tensor, largest: float = LARGEST) -> Tensor:
    """Return a tensor rounded to FP16; its gradient passes as if it were not, and stops where it is clamped.

    Between FP16's largest number and a `largest` beyond it, values are not rounded.
    """
    clamped = tensor.clamp(-largest, largest)
    plain = clamped.detach()
    rounded = plain.half().float()
    if largest > LARGEST:
        rounded = torch.where(plain.abs() > LARGEST, plain, rounded)
    return clamped + (rounded - plain)


def run_half(
    model: nn.Module, weights: ScaledWeights, inputs: Mapping[str, Tensor], bits: float, slack: float = 0.0
) -> tuple[list[Tensor], HalfForward]:
    """Run a model in half, its weights included; return its floating-point outputs, ranges and excesses."""
    mode = HalfForward(bits, slack)
    values = {name: mode.stored(value, f"the weight `{name}`", mode.bits) for name, value in weights.values().items()}
    with mode.following(model), mode:
        output = weights.call(values, inputs)
    return floats(output), mode


def floats(output: Any) -> list[Tensor]:
    """Return the floating-point tensors of a model's output."""
    return [tensor for _, tensor in tensors_of(output) if tensor.is_floating_point()]
