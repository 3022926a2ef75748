"""Products, sums and batch normalizations that change every channel by constants: y[c] = scale[c] x[c] + shift[c]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from demi.tensors import Array

OPERATORS = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True, slots=True)
class Affine:
    """A node that computes `scale * x + shift`, both of shape (channels,) in float64; `x` is its input `position`."""

    node: ir.Node
    position: int
    scale: Array
    shift: Array


def affine_of(node: ir.Node, position: int, channels: int, rank: int) -> Affine | None:
    """Return what a node does to its input `position`, of this rank and with this many channels; None if it is no Affine."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "BatchNormalization":
        return _normalization(node, channels) if position == 0 else None
    if node.op_type not in OPERATORS or (position == 1 and node.op_type in ("Sub", "Div")):
        return None
    constant = _by_channel(node.inputs[1 - position], channels, rank)
    if constant is None:
        return None
    one, zero = np.ones_like(constant), np.zeros_like(constant)
    if node.op_type in ("Add", "Sub"):
        return Affine(node, position, one, constant if node.op_type == "Add" else -constant)
    with np.errstate(divide="ignore"):
        return Affine(node, position, constant if node.op_type == "Mul" else 1 / constant, zero)


def _normalization(node: ir.Node, channels: int) -> Affine | None:
    """Return a BatchNormalization in inference: y = (x - mean) scale / sqrt(variance + epsilon) + bias."""
    found = [numbers_of(value) for value in node.inputs[1:5]]
    trains = node.attributes.get_int("training_mode", 0) or any(value.uses() for value in node.outputs[1:])
    if trains or len(found) != 4 or any(each is None or each.shape != (channels,) for each in found):
        return None
    scale, bias, mean, variance = (each for each in found if each is not None)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return Affine(node, 0, factor, bias - mean * factor)


def _by_channel(value: ir.Value | None, channels: int, rank: int) -> Array | None:
    """Return a constant that is one number, or one for each channel, as shape (channels,); None for any other."""
    numbers = numbers_of(value)
    if numbers is None or numbers.ndim > rank:
        return None
    shape = (1,) * (rank - numbers.ndim) + numbers.shape
    if shape not in ((1,) * rank, (1, channels, *(1,) * (rank - 2))):
        return None
    return np.broadcast_to(numbers.reshape(-1), (channels,))


def numbers_of(value: ir.Value | None) -> Array | None:
    """Return an FP32 constant in float64; None for anything else."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    if value.const_value.dtype != ir.DataType.FLOAT:
        return None
    numbers: Array = value.const_value.numpy().astype(np.float64)
    return numbers
