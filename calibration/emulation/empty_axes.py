"""Pad empty axes for operators that cannot take them: ONNX Runtime's Scan divides by the length of an axis.

Every empty axis is padded to one element with zeros, and the result is cut back to the original shape. Where no axis is
empty, both steps only copy.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

INT64 = ir.TensorType(ir.DataType.INT64)


def fill_empty_axes(x: ir.Value, rank: int) -> tuple[list[ir.Node], ir.Value, ir.Value]:
    """Return the nodes that pad `x`, the padded value, and the shape of `x` for `cut_back`."""
    shape = _integers(ir.node("Shape", [x]))
    zero, nothing = _constant(0), _constant([0] * rank)
    empty = ir.node("Equal", [shape.outputs[0], zero.outputs[0]])
    empty.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    behind = _integers(ir.node("Cast", [empty.outputs[0]], attributes={"to": int(ir.DataType.INT64)}))
    pads = _integers(ir.node("Concat", [nothing.outputs[0], behind.outputs[0]], attributes={"axis": 0}))
    padded = ir.node("Pad", [x, pads.outputs[0]])
    return [shape, zero, nothing, empty, behind, pads, padded], padded.outputs[0], shape.outputs[0]


def cut_back(value: ir.Value, shape: ir.Value, rank: int) -> list[ir.Node]:
    """Return the nodes that cut a padded value back to a shape; the last one has the result."""
    starts, axes = _constant([0] * rank), _constant(list(range(rank)))
    return [starts, axes, ir.node("Slice", [value, starts.outputs[0], shape, axes.outputs[0]])]


def _constant(numbers: int | list[int]) -> ir.Node:
    return _integers(ir.node("Constant", [], attributes={"value": ir.tensor(np.array(numbers, np.int64))}))


def _integers(node: ir.Node) -> ir.Node:
    node.outputs[0].type = INT64
    return node
