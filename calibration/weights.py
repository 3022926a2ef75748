"""Weights of any size, read in pieces and not through a memory map, which would keep every page that was read."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from demi.calibration.profile import Range, range_of
from demi.errors import SourceError
from demi.float16 import BF16, Float32, HalfFormat, HalfLoss, half_loss, to_half
from demi.tensors import Array

PIECE = 1 << 23
"""Elements of a weight in memory at a time."""

HALF_TYPE = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


class StreamedTensor(ir.LazyTensor):
    """A float32 tensor that is made anew each time it is needed, piece by piece where that will do."""

    def __init__(self, parts: Callable[[], Iterator[Float32]], shape: tuple[int, ...], name: str | None) -> None:
        self.parts = parts
        size = math.prod(shape)

        def whole() -> ir.Tensor[Array]:
            numbers, start = np.empty(size, np.float32), 0
            for part in parts():
                numbers[start : start + part.size] = part
                start += part.size
            return ir.Tensor(numbers.reshape(shape), name=name)

        super().__init__(whole, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)


def pieces(tensor: ir.TensorProtocol) -> Iterator[Float32]:
    """Yield a float32 tensor's elements, in order, in flat pieces; external tensors are read from their file."""
    if isinstance(tensor, StreamedTensor):
        yield from tensor.parts()
        return
    if isinstance(tensor, ir.ExternalTensor):
        yield from _pieces_of_file(tensor)
        return
    flat = np.asarray(tensor.numpy(), dtype=np.float32).reshape(-1)
    yield from (flat[start : start + PIECE] for start in range(0, flat.size, PIECE))


def placed_pieces(tensor: ir.TensorProtocol) -> Iterator[tuple[slice, Float32]]:
    """Yield each of a float32 tensor's flat pieces with its place among all elements."""
    start = 0
    for piece in pieces(tensor):
        yield slice(start, start + piece.size), piece
        start += piece.size


def in_piece(array: NDArray[np.int64], shape: tuple[int, ...], place: slice) -> NDArray[np.int64]:
    """Return the part of an array, broadcast to `shape`, that belongs to a flat piece; nothing larger is made."""
    if array.size == 1:
        return array.reshape(1)
    return np.asarray(np.broadcast_to(array, shape).flat[place], np.int64)


def _pieces_of_file(tensor: ir.ExternalTensor) -> Iterator[Float32]:
    left, offset = tensor.size, tensor.offset or 0
    little_endian = np.dtype("<f4")
    while left:
        count = min(left, PIECE)
        piece = np.fromfile(tensor.path, dtype=little_endian, count=count, offset=offset)
        if piece.size != count:
            raise _cut_off(tensor)
        yield piece
        left, offset = left - count, offset + count * little_endian.itemsize


def weight_loss(tensor: ir.TensorProtocol, fmt: HalfFormat) -> HalfLoss:
    """Count the losses of a float32 weight in half."""
    return functools.reduce(HalfLoss.merge, (half_loss(piece, fmt) for piece in pieces(tensor)), HalfLoss(0, 0, 0, 0.0))


def constant_loss(value: ir.Value, fmt: HalfFormat) -> HalfLoss:
    """Count the losses of a float32 constant in half; the result is cached with the value and its clones."""
    assert value.const_value is not None
    key = f"demi/loss/{fmt.name}"
    if key not in value.meta:
        value.meta[key] = weight_loss(value.const_value, fmt)
    loss: HalfLoss = value.meta[key]
    return loss


def weight_range(tensor: ir.TensorProtocol) -> Range:
    """Return the range of a float32 weight."""
    return functools.reduce(Range.merge, map(range_of, pieces(tensor)), Range())


def half_weight(
    tensor: ir.TensorProtocol, fmt: HalfFormat, name: str, change: Callable[[Array], Array]
) -> ir.TensorProtocol:
    """Return a float32 weight in half, after `change`; an external weight is read when the result is written."""
    dtype = HALF_TYPE[fmt.name]
    if not isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):  # a lazy one is made of an external one, scaled
        return ir.Tensor(as_ir_array(change(tensor.numpy()), fmt), dtype=dtype, name=name)

    def read() -> ir.Tensor[Array]:
        half = np.empty(tensor.size, np.uint16 if fmt is BF16 else np.float16)
        start = 0
        for piece in pieces(tensor):
            half[start : start + piece.size] = to_half(change(piece), fmt)
            start += piece.size
        return ir.Tensor(_typed(half, fmt).reshape(tensor.shape.numpy()), dtype=dtype, name=name)

    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def unmapped(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return an external weight as a tensor that is read only when it is written, and not kept; others unchanged."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor

    def read() -> ir.Tensor[Array]:
        raw = np.fromfile(tensor.path, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset or 0)
        if raw.size != tensor.nbytes:
            raise _cut_off(tensor)
        array = raw.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
        return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)

    if tensor.dtype.itemsize < 1:  # packed types of four bits and less
        return ir.external_data.convert_tensors_from_external([tensor])[0]
    return ir.LazyTensor(read, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "")


def _cut_off(tensor: ir.ExternalTensor) -> SourceError:
    return SourceError(
        f"the weight file ends within `{tensor.name}`",
        where=str(tensor.path),
        hint="the file is truncated: copy it again",
    )


def as_ir_array(numbers: Array, fmt: HalfFormat) -> Array:
    """Return an array in half with the dtype that onnx-ir takes: float16, or ml_dtypes' bfloat16."""
    return _typed(to_half(numbers, fmt), fmt)


def _typed(half: Array, fmt: HalfFormat) -> Array:
    if fmt is not BF16:
        return half
    import ml_dtypes

    return half.view(ml_dtypes.bfloat16)
