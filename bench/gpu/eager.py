"""A shape in PyTorch's own half, eager or compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from bench.gpu.peaks import DTYPES, finish
from bench.gpu.setup import Setup
from bench.gpu.shapes import Shape


def module_in(setup: Setup, shape: Shape, precision: str) -> torch.nn.Module:
    """Return a copy of the module on the device, its weights in that precision; images in channels-last layout."""
    module = copy.deepcopy(shape.module).to(setup.device, DTYPES[precision])
    has_images = any(array.ndim == 4 for array in shape.inputs(1).values())
    return module.to(memory_format=torch.channels_last) if has_images else module  # type: ignore[call-overload]


def caller(
    setup: Setup, module: Callable[..., object], shape: Shape, batch: int, precision: str
) -> Callable[[], object]:
    """Return a call that runs the module to its end on this many rows of inputs on the device."""
    feeds = {}
    for name, array in shape.inputs(batch).items():
        tensor = torch.from_numpy(array).to(setup.device)
        tensor = tensor.to(DTYPES[precision]) if tensor.is_floating_point() else tensor
        feeds[name] = tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    def call() -> object:
        with torch.inference_mode():
            return finish(setup, module(**feeds))

    return call
