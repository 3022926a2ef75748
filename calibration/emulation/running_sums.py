"""Sums and products that grow step by step, spelled out as a Scan whose body takes one step.

| operator | what kernels do in half |
| --- | --- |
| CumSum, CumProd | add to, or multiply, what is there so far, and round it |
| ScatterElements, ScatterND with a sum or a product | the same for every update, at the place it goes to |
| Sum, Mean of more than two tensors | add one tensor after the other |

ONNX Runtime's CUDA kernels do so by their source, the scatters with atomic additions, whose order changes from run to run.
OpenVINO does so in BF16, and cuts off where this rounds to nearest: its error was 2.4 to 25 times the one shown here, and 25
to 250 times that of one rounding, which is why plans keep the running sums and the scatters in FP32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from demi.calibration.emulation.empty_axes import cut_back, fill_empty_axes
from demi.calibration.graph_pieces import (
    Spelled,
    body_of,
    constant,
    constant_number,
    dtype_of,
    first,
    held,
    operand,
    shape_of,
    spelled,
    typed,
    with_axis,
)

ACCUMULATING = frozenset({"add", "mul"})
"""What a scatter may do with an element that is there; a minimum or maximum of two halves is exact."""

_END = np.array([np.iinfo(np.int64).max])


def accumulates(node: ir.Node) -> bool:
    """Whether the node is a scatter that adds to, or multiplies, what is there."""
    reduction = node.attributes.get("reduction")
    return (
        node.op_type in ("ScatterElements", "ScatterND")
        and reduction is not None
        and reduction.as_string() in ACCUMULATING
    )


def running_sum(node: ir.Node, opset: int) -> Spelled | None:
    """CumSum, unless its axis comes in at run time."""
    return _running(node, opset, "Add", 0)


def running_product(node: ir.Node, opset: int) -> Spelled | None:
    """CumProd, likewise."""
    return _running(node, opset, "Mul", 1)


def _running(node: ir.Node, opset: int, op_type: str, start: int) -> Spelled | None:
    x, axis, kind = first(node), constant_number(operand(node, 1)), dtype_of(node)
    if axis is None or x.shape is None:
        return None
    filling, x, sizes = fill_empty_axes(x, rank := len(x.shape))
    axis %= rank
    so_far, item = held("demi_so_far", kind), held("demi_item", kind)
    step = ir.node(op_type, [so_far, item])
    shown = ir.node("Identity", [so_far if node.attributes.get_int("exclusive", 0) else step.outputs[0]])
    body = body_of([so_far, item], [step.outputs[0], shown.outputs[0]], [step, shown], f"{node.name}_demi_body")
    index = constant(np.array(0, np.int64))
    slice_ = typed(ir.node("Gather", [x, index.outputs[0]], attributes={"axis": axis}), kind)
    shape = shape_of(slice_.outputs[0])
    begin = ir.tensor(np.full(1, start, kind.numpy()), dtype=kind)
    # Not made of the slice by arithmetic: that would be NaN where the slice is infinite.
    initial = ir.node("ConstantOfShape", [shape.outputs[0]], attributes={"value": begin})
    backwards = node.attributes.get_int("reverse", 0)
    attributes: dict[str, Any] = {"body": body, "num_scan_inputs": 1}
    attributes |= {f"scan_{side}_axes": [axis] for side in ("input", "output")}
    attributes |= {f"scan_{side}_directions": [backwards] for side in ("input", "output")}
    scan = typed(ir.node("Scan", [initial.outputs[0], x], attributes=attributes, num_outputs=2), kind, kind)
    return spelled([*filling, index, slice_, shape, initial, scan, *cut_back(scan.outputs[1], sizes, rank)])


def scattered_elements(node: ir.Node, opset: int) -> Spelled | None:
    """ScatterElements with a sum or a product: along its axis, no slice of the updates meets a place twice."""
    if not accumulates(node):
        return None
    axis = node.attributes.get_int("axis", 0)
    new, scanned = (axis, axis + 1) if axis >= 0 else (axis - 1, axis)
    pieces = [
        with_axis("Unsqueeze", value, new, opset, value.dtype or ir.DataType.INT64)
        for value in node.inputs[1:]
        if value is not None
    ]
    indices, updates = (nodes[-1].outputs[0] for nodes in pieces)
    scan = _scatter_scan(node, indices, updates, scanned)
    return spelled([*pieces[0], *pieces[1], scan, ir.node("Identity", [scan.outputs[0]])])


def scattered_nd(node: ir.Node, opset: int) -> Spelled | None:
    """ScatterND with a sum or a product, one update after the other."""
    if not accumulates(node):
        return None
    data, indices, updates = node.inputs
    assert data is not None
    assert indices is not None
    assert updates is not None
    last, one_each, end = (constant(np.array(each, np.int64)) for each in ([-1], [-1, 1], _END))
    index_shape, data_shape = shape_of(indices), shape_of(data)
    depth = _integers("Gather", index_shape, last)
    kept = _integers("Slice", data_shape, depth, end)
    index_rows, update_rows = (_integers("Concat", one_each, each, axis=0) for each in (depth, kept))
    rows = [
        typed(ir.node("Reshape", [value, shape.outputs[0]]), value.dtype or dtype_of(node))
        for value, shape in ((indices, index_rows), (updates, update_rows))
    ]
    scan = _scatter_scan(node, rows[0].outputs[0], rows[1].outputs[0], 0)
    shapes = [last, one_each, end, index_shape, data_shape, depth, kept, index_rows, update_rows]
    return spelled([*shapes, *rows, scan, ir.node("Identity", [scan.outputs[0]])])


def _integers(op_type: str, *inputs: ir.Node, **attributes: int) -> ir.Node:
    return typed(ir.node(op_type, [each.outputs[0] for each in inputs], attributes=attributes), ir.DataType.INT64)


def _scatter_scan(node: ir.Node, indices: ir.Value, updates: ir.Value, axis: int) -> ir.Node:
    """The Scan that scatters one slice of the updates after the other into what is there so far."""
    kind = dtype_of(node)
    so_far = held("demi_so_far", kind)
    where, what = held("demi_where", indices.dtype or ir.DataType.INT64), held("demi_what", kind)
    step = ir.Node("", node.op_type, [so_far, where, what], attributes=list(node.attributes.values()))
    body = body_of([so_far, where, what], [step.outputs[0]], [step], f"{node.name}_demi_body")
    attributes: dict[str, Any] = {"body": body, "num_scan_inputs": 2, "scan_input_axes": [axis, axis]}
    return typed(ir.node("Scan", [first(node), indices, updates], attributes=attributes), kind)


def chained_sum(node: ir.Node, opset: int) -> Spelled | None:
    """Sum of more than two tensors, as additions."""
    nodes = _chain(node.inputs)
    return spelled(nodes) if len(nodes) > 1 else None


def chained_mean(node: ir.Node, opset: int) -> Spelled | None:
    """Mean of more than two tensors, as additions and a division."""
    nodes = _chain(node.inputs)
    if len(nodes) < 2:
        return None
    count = constant(np.array(len(node.inputs), dtype_of(node).numpy()), dtype_of(node))
    return spelled([*nodes, count, ir.node("Div", [nodes[-1].outputs[0], count.outputs[0]])])


def _chain(values: Sequence[ir.Value | None]) -> list[ir.Node]:
    total, nodes = values[0], []
    for value in values[1:]:
        nodes.append(ir.node("Add", [total, value]))
        total = nodes[-1].outputs[0]
    return nodes
