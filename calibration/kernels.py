"""What CUDA kernels round inside: reductions that keep intermediate results in half, spelled out in primitives.

| operator | what ONNX Runtime's CUDA kernel does in half |
| --- | --- |
| ReduceMean | accumulates in single, stores the sum in half, divides in half |
| ReduceL2, ReduceSumSquare | squares in half, then sums |
| CumSum | adds in half |
| ReduceLogSumExp | subtracts the maximum, and stores differences, exponentials, their sum and its logarithm in half |

`spell_out` rewrites such nodes, so that an emulator which rounds every half tensor rounds these as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.empty_axes import cut_back, fill_empty_axes
from demi.tensors import Array

ORIGIN = "demi_origin"
"""Metadata of a spelled-out node: the name of the node it stands for."""

OPSET_REDUCE_SUM_AXES = 13
"""From this opset on ReduceSum takes its axes as an input; the other reductions from 18 on."""


def spell_out(model: ir.Model, wanted: Callable[[ir.Node], bool]) -> ir.Model:
    """Rewrite, in place, the reductions that `wanted` picks; every other node and all names stay. Returns `model`.

    The rewritten nodes compute the same, up to the order of summation, in the type of the node they stand for.
    """
    for node in list(model.graph.all_nodes()):
        rewrite = _REWRITES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rewrite is not None and wanted(node):
            _replace(node, rewrite(node, model.opset_imports.get("", 1)))
    return model


def origin(node: ir.Node) -> str:
    """The name of the node that `node` stands for: its own, unless it was spelled out."""
    return node.metadata_props.get(ORIGIN) or node.name or ""


def _replace(node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put `nodes` (the last one makes the result) in the place of `node`."""
    graph, old, new = node.graph, node.outputs[0], nodes[-1].outputs[0]
    assert graph is not None
    for position, piece in enumerate(nodes):
        piece.name = f"{node.name}_demi{position}"
        piece.metadata_props[ORIGIN] = node.name or ""
        for index, value in enumerate(piece.outputs):
            value.name = value.name or f"{piece.name}_{index}"
            value.type = value.type or ir.TensorType(old.dtype or ir.DataType.FLOAT)
    new.shape, new.type = old.shape, old.type
    new.meta.update(old.meta)
    graph.insert_before(node, nodes)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    name = old.name
    old.name = f"{name}_demi_old"
    new.name = name
    graph.remove(node, safe=True)


def _reduce_mean(node: ir.Node, opset: int) -> list[ir.Node]:
    x = _first(node)
    total, extra = _reduce_sum(node, x, opset)
    size_in, size_out = ir.node("Size", [x]), ir.node("Size", [total.outputs[0]])
    for size in (size_in, size_out):
        size.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    one = _constant(np.array(1, np.int64))
    rows = _at_least_one(size_out.outputs[0], one.outputs[0])
    count = ir.node("Div", [size_in.outputs[0], rows[-1].outputs[0]])
    count.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    terms = _at_least_one(count.outputs[0], one.outputs[0])  # the mean of no terms is 0 in the runtimes
    divisor = ir.node("Cast", [terms[-1].outputs[0]], attributes={"to": int(_dtype(node))})
    mean = ir.node("Div", [total.outputs[0], divisor.outputs[0]])
    return [*extra, total, size_in, size_out, one, *rows, count, *terms, divisor, mean]


def _at_least_one(size: ir.Value, one: ir.Value) -> list[ir.Node]:
    """The larger of a size and 1, so that nothing is divided by zero. (Max takes integers from opset 12 on only.)"""
    some = ir.node("Cast", [size], attributes={"to": int(ir.DataType.BOOL)})
    some.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    chosen = ir.node("Where", [some.outputs[0], size, one])
    chosen.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    return [some, chosen]


def _reduce_sum_square(node: ir.Node, opset: int) -> list[ir.Node]:
    x = _first(node)
    square = ir.node("Mul", [x, x])
    square.outputs[0].shape = x.shape
    total, extra = _reduce_sum(node, square.outputs[0], opset)
    return [square, *extra, total]


def _reduce_l2(node: ir.Node, opset: int) -> list[ir.Node]:
    nodes = _reduce_sum_square(node, opset)
    return [*nodes, ir.node("Sqrt", [nodes[-1].outputs[0]])]


def _cum_sum(node: ir.Node, opset: int) -> list[ir.Node]:
    """CumSum as a Scan whose body adds one slice to the sum so far."""
    x, axis_value = _first(node), node.inputs[1]
    axis = (
        int(axis_value.const_value.numpy().item())
        if axis_value is not None and axis_value.const_value is not None
        else None
    )
    if axis is None or x.shape is None:
        return [ir.Node("", "CumSum", node.inputs, attributes=list(node.attributes.values()))]
    rank, dtype = len(x.shape), _dtype(node)
    axis %= rank
    filling, x, sizes = fill_empty_axes(x, rank)
    sum_in, item = _value("demi_sum_in", dtype), _value("demi_item", dtype)
    add = ir.node("Add", [sum_in, item], name=f"{node.name}_demi_add")
    add.outputs[0].name, add.outputs[0].type = f"{node.name}_demi_sum", ir.TensorType(dtype)
    add.metadata_props[ORIGIN] = node.name or ""
    shown = sum_in if node.attributes.get_int("exclusive", 0) else add.outputs[0]
    copy = ir.node("Identity", [shown], name=f"{node.name}_demi_show")
    copy.outputs[0].name, copy.outputs[0].type = f"{node.name}_demi_shown", ir.TensorType(dtype)
    copy.metadata_props[ORIGIN] = node.name or ""
    body = ir.Graph([sum_in, item], [add.outputs[0], copy.outputs[0]], nodes=[add, copy], name=f"{node.name}_demi_body")
    index = _constant(np.array(0, np.int64))
    slice_ = ir.node("Gather", [x, index.outputs[0]], attributes={"axis": axis})
    shape = ir.node("Shape", [slice_.outputs[0]])
    shape.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    # Not the slice minus itself: that would be NaN where the slice is infinite.
    nought = ir.tensor(np.zeros(1, dtype.numpy()), dtype=dtype)
    zero = ir.node("ConstantOfShape", [shape.outputs[0]], attributes={"value": nought})
    direction = 1 if node.attributes.get_int("reverse", 0) else 0
    attributes: dict[str, Any] = {
        "body": body,
        "num_scan_inputs": 1,
        "scan_input_axes": [axis],
        "scan_output_axes": [axis],
    }
    attributes |= {"scan_input_directions": [direction], "scan_output_directions": [direction]}
    scan = ir.node("Scan", [zero.outputs[0], x], attributes=attributes, num_outputs=2)
    for value in scan.outputs:
        value.type = ir.TensorType(dtype)
    return [*filling, index, slice_, shape, zero, scan, *cut_back(scan.outputs[1], sizes, rank)]


def _reduce_log_sum_exp(node: ir.Node, opset: int) -> list[ir.Node]:
    x = _first(node)
    attributes = {name: attribute for name, attribute in node.attributes.items() if name != "keepdims"}
    largest = ir.Node("", "ReduceMax", node.inputs, attributes=list(attributes.values()))
    shown = ir.Node("", "ReduceMax", node.inputs, attributes=list(node.attributes.values()))
    difference = ir.node("Sub", [x, largest.outputs[0]])
    power = ir.node("Exp", [difference.outputs[0]])
    for value in (difference.outputs[0], power.outputs[0]):
        value.shape = x.shape
    total, extra = _reduce_sum(node, power.outputs[0], opset)
    logarithm = ir.node("Log", [total.outputs[0]])
    result = ir.node("Add", [logarithm.outputs[0], shown.outputs[0]])
    return [largest, shown, difference, power, *extra, total, logarithm, result]


_REWRITES: dict[str, Callable[[ir.Node, int], list[ir.Node]]] = {
    "ReduceMean": _reduce_mean,
    "ReduceL2": _reduce_l2,
    "ReduceSumSquare": _reduce_sum_square,
    "CumSum": _cum_sum,
    "ReduceLogSumExp": _reduce_log_sum_exp,
}


ROUNDS_INSIDE = frozenset(_REWRITES)
"""Operators whose CUDA kernels keep intermediate results in half."""


def _reduce_sum(node: ir.Node, x: ir.Value, opset: int) -> tuple[ir.Node, list[ir.Node]]:
    """A ReduceSum over the node's axes, and the constant that holds them where the opset wants one."""
    attributes = {"keepdims": node.attributes.get_int("keepdims", 1)}
    if node.attributes.get_int("noop_with_empty_axes", 0):
        attributes["noop_with_empty_axes"] = 1
    axes = node.attributes.get("axes")
    if axes is None:
        inputs = [x, node.inputs[1]] if len(node.inputs) > 1 and node.inputs[1] is not None else [x]
        return ir.node("ReduceSum", inputs, attributes=attributes), []
    if opset < OPSET_REDUCE_SUM_AXES:
        return ir.node("ReduceSum", [x], attributes=attributes | {"axes": list(axes.as_ints())}), []
    constant = _constant(np.array(axes.as_ints(), np.int64))
    return ir.node("ReduceSum", [x, constant.outputs[0]], attributes=attributes), [constant]


def _constant(value: Array) -> ir.Node:
    node = ir.node("Constant", [], attributes={"value": ir.tensor(value)})
    node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    return node


def _value(name: str, dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype))


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _dtype(node: ir.Node) -> ir.DataType:
    return node.outputs[0].dtype or ir.DataType.FLOAT
