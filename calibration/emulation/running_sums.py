"""Running sums and products, rounded after every step: written out as a Scan whose body is one step.

| operator | its kernels in half |
| --- | --- |
| CumSum, CumProd | round after every addition or multiplication |
| ScatterElements, ScatterND with a sum or a product | round after every update of an element |
| Sum, Mean of more than two tensors | round after every added tensor |

ONNX Runtime's CUDA kernels work this way (by their source; scatters use atomic additions, whose order varies). OpenVINO
does so in BF16, but truncates where this rounds to nearest: its error was 2.4 to 25 times the one emulated here, and 25
to 250 times that of one rounding. Plans therefore keep running sums and such scatters in FP32.
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
"""Reductions of scatters that round; the minimum and the maximum of two halves are exact."""

_END = np.array([np.iinfo(np.int64).max])


def accumulates(node: ir.Node) -> bool:
    """Return whether the node is a scatter that adds to or multiplies existing elements."""
    reduction = node.attributes.get("reduction")
    return (
        node.op_type in ("ScatterElements", "ScatterND")
        and reduction is not None
        and reduction.as_string() in ACCUMULATING
    )


def running_sum(node: ir.Node, opset: int) -> Spelled | None:
    """Write out CumSum; None where its axis is known at run time only."""
    return _running(node, opset, "Add", 0)


def running_product(node: ir.Node, opset: int) -> Spelled | None:
    """Write out CumProd; None where its axis is known at run time only."""
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
    # Not computed from the slice, as by multiplying with 0: that would be NaN where the slice is infinite.
    initial = ir.node("ConstantOfShape", [shape.outputs[0]], attributes={"value": begin})
    backwards = node.attributes.get_int("reverse", 0)
    attributes: dict[str, Any] = {"body": body, "num_scan_inputs": 1}
    attributes |= {f"scan_{side}_axes": [axis] for side in ("input", "output")}
    attributes |= {f"scan_{side}_directions": [backwards] for side in ("input", "output")}
    scan = typed(ir.node("Scan", [initial.outputs[0], x], attributes=attributes, num_outputs=2), kind, kind)
    return spelled([*filling, index, slice_, shape, initial, scan, *cut_back(scan.outputs[1], sizes, rank)])


def scattered_elements(node: ir.Node, opset: int) -> Spelled | None:
    """Write out ScatterElements with a sum or a product: each slice of updates along its axis hits every element once."""
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
    """Write out ScatterND with a sum or a product, one update at a time."""
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
    """Return the Scan that scatters one slice of updates at a time into the result so far."""
    kind = dtype_of(node)
    so_far = held("demi_so_far", kind)
    where, what = held("demi_where", indices.dtype or ir.DataType.INT64), held("demi_what", kind)
    step = ir.Node("", node.op_type, [so_far, where, what], attributes=list(node.attributes.values()))
    body = body_of([so_far, where, what], [step.outputs[0]], [step], f"{node.name}_demi_body")
    attributes: dict[str, Any] = {"body": body, "num_scan_inputs": 2, "scan_input_axes": [axis, axis]}
    return typed(ir.node("Scan", [first(node), indices, updates], attributes=attributes), kind)


def chained_sum(node: ir.Node, opset: int) -> Spelled | None:
    """Write out Sum of more than two tensors as additions."""
    nodes = _chain(node.inputs)
    return spelled(nodes) if len(nodes) > 1 else None


def chained_mean(node: ir.Node, opset: int) -> Spelled | None:
    """Write out Mean of more than two tensors as additions and a division."""
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
