"""Regions of a graph in which every channel may have its own power of two.

A region holds tensors with the same channels, from the weights that make them to the weights that take them up again: a
linear layer, Relu, and the linear layer behind it (cross-layer equalization, arXiv:1906.04721); a normalization's scale
and bias with the layers that read it (SmoothQuant, arXiv:2211.10438); a layer with the mean and the scale of the batch
normalization behind it; the value projection of attention with that
of its output; the factor of a gated layer that is not activated, with the layer behind it (AWQ, arXiv:2306.00978). Gelu,
SiLU and everything else that does not commute with a power of two ends the search, and there is no region.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from demi.exporter.rescaling.equations import Operand, is_constant, is_tensor

Layout = NDArray[np.int64]
"""The number of each element's channel, as an array that broadcasts with the tensor: (C,), or (C, 1, 1) for images."""

MOST_TENSORS = 64
"""Tensors of a region, at the most: longer chains share one residual stream, which normalizations read as a whole."""

UNARY = frozenset({"Identity", "Relu", "LeakyRelu", "Abs", "Neg"})
POOLS = frozenset({"MaxPool", "AveragePool"})
SUMS = frozenset({"Add", "Sub"})
SCALES = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
"""Positions of scale and bias, by operator, whose channels are the last dimension."""
CHANNEL_SCALES = {"BatchNormalization": (1, 2), "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2)}
"""The same for those whose channels are the second dimension."""


class _NoRegionError(Exception):
    """A node through which the scale of a channel does not pass."""


@dataclass(slots=True)
class Region:
    """Tensors with the same channels, and the constants around them."""

    channels: int
    tensors: dict[ir.Value, Layout] = field(default_factory=dict)
    made_by: dict[Operand, Layout] = field(default_factory=dict)
    """Constants that are scaled like the tensors."""
    taken_by: dict[Operand, Layout] = field(default_factory=dict)
    """Constants that are scaled by the inverse."""


def region_of(seed: ir.Value) -> Region | None:
    """Return the region of a node's result; None where its channels cannot have scales of their own."""
    maker = seed.producer()
    layout = _layout_of(seed, maker)
    if maker is None or layout is None or layout.size < 2:
        return None
    region = Region(layout.size)
    try:
        _Walk(region).from_(seed, layout)
    except _NoRegionError:
        return None
    return region if region.made_by and region.taken_by else None


def _layout_of(value: ir.Value, maker: ir.Node | None) -> Layout | None:
    """The channels of a result: the second dimension of an image, the last one of everything else."""
    shape = _shape_of(value)
    if shape is None or not len(shape):
        return None
    of_images = ("Conv", "GlobalAveragePool", *POOLS, *CHANNEL_SCALES)
    axis = 1 if maker is not None and maker.op_type in of_images and len(shape) > 1 else len(shape) - 1
    axis = 1 if _comes_from_conv(maker) and len(shape) > 2 else axis
    size = shape[axis]
    return np.arange(size).reshape(size, *(1,) * (len(shape) - 1 - axis)) if isinstance(size, int) else None


def _shape_of(value: ir.Value | None) -> ir.Shape | None:
    """Return a tensor's shape; behind operators for which ONNX infers none, such as GroupNormalization, that of their input."""
    while value is not None and value.shape is None:
        maker = value.producer()
        value = maker.inputs[0] if maker is not None and maker.op_type in (*UNARY, *CHANNEL_SCALES) else None
    return value.shape if value is not None else None


def _comes_from_conv(maker: ir.Node | None) -> bool:
    while maker is not None and maker.op_type in (UNARY | POOLS | SUMS):
        before = next((v for v in maker.inputs if v is not None and not is_constant(v)), None)
        maker = before.producer() if before is not None else None
    return maker is not None and maker.op_type in ("Conv", *CHANNEL_SCALES)


class _Walk:
    """The search for a region, up and down from a tensor. Owns the tensors that are still to be looked at."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self._queue: deque[ir.Value] = deque()

    def from_(self, seed: ir.Value, layout: Layout) -> None:
        self._add(seed, layout)
        while self._queue:
            value = self._queue.popleft()
            maker = value.producer()
            if maker is None or value.is_graph_output() or len(self.region.tensors) > MOST_TENSORS:
                raise _NoRegionError
            self._up(maker, value, self.region.tensors[value])
            for use in value.uses():
                self._down(use.node, use.idx, value, self.region.tensors[value])

    def _add(self, value: ir.Value | None, layout: Layout) -> None:
        if value is None or not is_tensor(value) or is_constant(value):
            raise _NoRegionError
        known = self.region.tensors.get(value)
        if known is None:
            if not _fits(layout, value):
                raise _NoRegionError
            self.region.tensors[value] = layout
            self._queue.append(value)
        elif not np.array_equal(known, layout):
            raise _NoRegionError

    def _constant(self, node: ir.Node, position: int, layout: Layout, *, inverse: bool = False) -> None:
        """Scale a constant by channel; its shape must have the channels where the layout has them."""
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is None or not is_tensor(value) or not is_constant(value) or value.const_value is None:
            raise _NoRegionError
        if not _broadcasts(layout, tuple(value.const_value.shape.numpy())):
            raise _NoRegionError
        (self.region.taken_by if inverse else self.region.made_by)[node, position] = layout

    def _up(self, node: ir.Node, value: ir.Value, layout: Layout) -> None:
        """Pass the tensor's maker: its weights are scaled, and its other tensors belong to the region, too."""
        op, inputs = node.op_type, node.inputs
        if node.outputs[0] is not value or any(each.uses() for each in node.outputs[1:]):
            raise _NoRegionError
        if op in UNARY or op in POOLS:
            self._add(inputs[0], layout)
        elif op in SUMS:
            for position, each in enumerate(inputs):
                if each is not None and is_constant(each):
                    self._constant(node, position, layout)
                else:
                    self._add(each, layout)
        elif op == "Mul":
            self._up_product(node, layout)
        elif op == "MatMul":
            if inputs[1] is not None and is_constant(inputs[1]):
                self._constant(node, 1, _last(layout))
            else:
                self._add(inputs[1], _last(layout))
        elif op == "Gemm":
            turned = node.attributes.get_int("transB", 0)
            self._constant(node, 1, _last(layout).reshape(-1, 1) if turned else _last(layout))
            if len(inputs) > 2 and inputs[2] is not None:
                self._constant(node, 2, _last(layout))
        elif op == "Conv":
            self._constant(node, 1, layout.reshape(-1, 1, *layout.shape[1:]))
            if len(inputs) > 2 and inputs[2] is not None:
                self._constant(node, 2, layout.reshape(-1))
        elif op in SCALES:
            for position in SCALES[op]:
                if position < len(inputs) and inputs[position] is not None:
                    self._constant(node, position, _last(layout))
        elif op in CHANNEL_SCALES:
            for position in CHANNEL_SCALES[op]:
                self._constant(node, position, layout.reshape(-1))
        elif op == "Transpose":
            order = _order(node)
            self._add(inputs[0], _whole(layout, len(order)).transpose(np.argsort(order)))
        elif op == "Reshape":
            self._add(inputs[0], _reshaped(layout, inputs[0]))
        else:
            raise _NoRegionError

    def _up_product(self, node: ir.Node, layout: Layout) -> None:
        """One factor carries the scale: a constant, a tensor of the region, or the one that is not activated."""
        constants = [i for i, each in enumerate(node.inputs) if each is not None and is_constant(each)]
        inside = [each for each in node.inputs if each in self.region.tensors]
        if len(set(node.inputs)) == 1 or len(inside) > 1:
            raise _NoRegionError
        if inside:
            self._add(inside[0], layout)
        elif constants:
            self._constant(node, constants[0], layout)
        else:
            plain = [each for each in node.inputs if each is not None and _is_linear(each.producer())]
            if not plain:
                raise _NoRegionError
            self._add(plain[-1], layout)

    def _down(self, node: ir.Node, position: int, value: ir.Value, layout: Layout) -> None:
        """Pass a reader of the tensor: its weights take the scale up, and its other results belong to the region, too."""
        op = node.op_type
        if op in UNARY or op in POOLS or op in SUMS:
            self._add(node.outputs[0], layout)
        elif op == "Mul":
            if sum(each in self.region.tensors for each in node.inputs) > 1:
                raise _NoRegionError
            self._add(node.outputs[0], layout)
        elif op == "MatMul" and position == 0:
            self._constant(node, 1, _last(layout).reshape(-1, 1), inverse=True)
        elif op == "MatMul":
            self._add(node.outputs[0], _last(layout))
        elif op == "Gemm" and position == 0 and not node.attributes.get_int("transA", 0):
            turned = node.attributes.get_int("transB", 0)
            self._constant(node, 1, _last(layout) if turned else _last(layout).reshape(-1, 1), inverse=True)
        elif op == "Conv" and position == 0 and node.attributes.get_int("group", 1) == 1:
            self._constant(node, 1, layout, inverse=True)
        elif op == "BatchNormalization" and position == 0 and not node.attributes.get_int("training_mode", 0):
            self._constant(node, 3, layout.reshape(-1))
            self._constant(node, 1, layout.reshape(-1), inverse=True)
        elif op == "Transpose":
            order = _order(node)
            self._add(node.outputs[0], _whole(layout, len(order)).transpose(order))
        elif op == "Reshape":
            self._add(node.outputs[0], _reshaped(layout, node.outputs[0]))
        else:
            raise _NoRegionError


def _is_linear(node: ir.Node | None) -> bool:
    """Return whether a node is a linear layer, perhaps with a bias behind it."""
    if node is not None and node.op_type == "Add" and any(v is not None and is_constant(v) for v in node.inputs):
        before = next((v for v in node.inputs if v is not None and not is_constant(v)), None)
        node = before.producer() if before is not None else None
    return node is not None and node.op_type in ("MatMul", "Gemm")


def _broadcasts(layout: Layout, shape: tuple[int, ...]) -> bool:
    """Return whether a constant of this shape has the channels of a layout."""
    try:
        return layout.ndim <= len(shape) and np.broadcast_shapes(layout.shape, shape) == shape
    except ValueError:
        return False


def _last(layout: Layout) -> Layout:
    """The layout of a tensor whose channels are its last dimension."""
    if layout.size != layout.shape[-1]:
        raise _NoRegionError
    return layout.reshape(-1)


def _whole(layout: Layout, rank: int) -> Layout:
    return layout.reshape((1,) * (rank - layout.ndim) + layout.shape)


def _order(node: ir.Node) -> list[int]:
    if "perm" not in node.attributes:
        raise _NoRegionError
    return list(node.attributes["perm"].as_ints())


def _reshaped(layout: Layout, value: ir.Value | None) -> Layout:
    """The layout of a tensor on the other side of a Reshape that splits or joins the last dimensions."""
    ones = next(i for i, size in enumerate(layout.shape) if size != 1)
    core = layout.reshape(layout.shape[ones:])
    shape = _shape_of(value)
    if shape is None or 1 in core.shape:
        raise _NoRegionError
    wanted: list[int] = []
    for size in reversed(list(shape)):
        if np.prod(wanted, dtype=np.int64) == core.size:
            break
        if not isinstance(size, int):
            raise _NoRegionError
        wanted.insert(0, size)
    if np.prod(wanted, dtype=np.int64) != core.size:
        raise _NoRegionError
    return core.reshape(wanted)


def _fits(layout: Layout, value: ir.Value) -> bool:
    """Return whether a tensor has the channels where the layout has them."""
    shape = _shape_of(value)
    if shape is None or layout.ndim > len(shape):
        return False
    return all(size in (1, have) for size, have in zip(reversed(layout.shape), reversed(list(shape)), strict=False))
