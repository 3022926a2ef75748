"""Cropped inputs: the middle of an image or of a sequence, along the free axes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from demi.tensors import Feeds

STEP = 32
"""Cropped sizes are multiples of this: networks seldom halve images more than five times."""


def crop(model: ir.Model, feeds: Feeds, share: float) -> Feeds | None:
    """Return about `share` of the elements of a set of inputs, from the middle of its free axes.

    The first axis, the batch, is not cropped. Axes with the same name keep the same size. Returns None if no axis
    can be cropped.
    """
    sizes = {name: size for name, _, size in _free_axes(model, feeds) if size >= 2 * STEP}
    if not sizes or share >= 1:
        return None
    factor = share ** (1 / len(sizes))
    wanted = {name: max(STEP, math.floor(size * factor) // STEP * STEP) for name, size in sizes.items()}
    return {name: array[tuple(_middle(model, name, array.shape, wanted))] for name, array in feeds.items()}


def _middle(model: ir.Model, name: str, shape: tuple[int, ...], wanted: dict[str, int]) -> Iterator[slice]:
    dims = next(value.shape for value in model.graph.inputs if value.name == name)
    for axis, size in enumerate(shape):
        size_wanted = wanted.get(_name(dims, axis) or "", size) if axis else size
        start = (size - size_wanted) // 2
        yield slice(start, start + size_wanted)


def _free_axes(model: ir.Model, feeds: Feeds) -> Iterator[tuple[str, str, int]]:
    """Yield (axis name, input name, size) for each free axis except the first."""
    for value in model.graph.inputs:
        array = feeds.get(value.name or "")
        for axis in range(1, array.ndim if array is not None else 0):
            if array is not None and (name := _name(value.shape, axis)):
                yield name, value.name or "", array.shape[axis]


def _name(dims: ir.Shape | None, axis: int) -> str | None:
    dim = dims[axis] if dims is not None and axis < len(dims) else None
    return dim.value if isinstance(dim, ir.SymbolicDim) else None
