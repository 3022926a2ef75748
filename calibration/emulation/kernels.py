"""Roundings inside kernels: operators that keep intermediate results in half, written out in primitive operators.

| operator | its kernel in half (ONNX Runtime's for CUDA, unless another is named) |
| --- | --- |
| ReduceMean | accumulates in single, stores the sum in half, divides in half |
| ReduceL2, ReduceSumSquare | squares in half, then sums |
| ReduceLogSumExp | subtracts the maximum, and stores differences, exponentials, their sum and its logarithm in half |
| LpNormalization | stores the norm in half, then divides (OpenVINO) |
| HardSwish | stores the gate, a HardSigmoid, in half: ONNX Runtime runs the two operators of its function |
| CumSum, CumProd, scatters that add or multiply, Sum and Mean | `demi.calibration.emulation.running_sums` |
| RNN, GRU, LSTM | `demi.calibration.emulation.recurrent` |

`spell_out` rewrites such nodes, so that the emulator, which rounds every half tensor, rounds these as well.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from demi.calibration.emulation.recurrent import RECURRENT, in_steps
from demi.calibration.emulation.running_sums import (
    chained_mean,
    chained_sum,
    running_product,
    running_sum,
    scattered_elements,
    scattered_nd,
)
from demi.calibration.graph_pieces import (
    OPSET_AXES_AS_INPUT,
    ORIGIN,
    Spelled,
    constant,
    dtype_of,
    first,
    replace,
    spelled,
    typed,
)


def spell_out(model: ir.Model, wanted: Callable[[ir.Node], bool]) -> ir.Model:
    """Rewrite, in place, the nodes that `wanted` selects and whose kernels round inside, and return `model`.

    The new nodes compute the same, up to the order of summation, in the type of the node that they replace. All other
    nodes and all names of tensors stay.
    """
    opset = model.opset_imports.get("", 1)
    for node in list(model.graph.all_nodes()):
        rewrite = _REWRITES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rewrite is not None and wanted(node) and (pieces := rewrite(node, opset)) is not None:
            replace(node, pieces)
    return model


Rewrite = Callable[[ir.Node, int], Spelled | None]
"""Function from a node and the opset to its replacement; None keeps the node."""

OPSET_WHERE = 9
"""First opset with Where."""

OPSET_REDUCTIONS_AXES = 18
"""First opset in which reductions other than ReduceSum take their axes as an input."""


def origin(node: ir.Node) -> str:
    """Return the name of the original node: the node's own, unless it comes from `spell_out`."""
    return node.metadata_props.get(ORIGIN) or node.name or ""


def _reduce_mean(node: ir.Node, opset: int) -> list[ir.Node]:
    x = first(node)
    total, extra = _reduce_sum(node, x, opset)
    size_in, size_out = ir.node("Size", [x]), ir.node("Size", [total.outputs[0]])
    for size in (size_in, size_out):
        size.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    one = constant(np.array(1, np.int64))
    rows = _at_least_one(size_out.outputs[0], one.outputs[0])
    count = ir.node("Div", [size_in.outputs[0], rows[-1].outputs[0]])
    count.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    terms = _at_least_one(count.outputs[0], one.outputs[0])  # runtimes return 0 for the mean of nothing
    divisor = ir.node("Cast", [terms[-1].outputs[0]], attributes={"to": int(dtype_of(node))})
    mean = ir.node("Div", [total.outputs[0], divisor.outputs[0]])
    return [*extra, total, size_in, size_out, one, *rows, count, *terms, divisor, mean]


def _at_least_one(size: ir.Value, one: ir.Value) -> list[ir.Node]:
    """Return the nodes for max(size, 1), against division by zero. (Max takes integers only from opset 12 on.)"""
    some = ir.node("Cast", [size], attributes={"to": int(ir.DataType.BOOL)})
    some.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    chosen = ir.node("Where", [some.outputs[0], size, one])
    chosen.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    return [some, chosen]


def _reduce_sum_square(node: ir.Node, opset: int) -> list[ir.Node]:
    x = first(node)
    square = ir.node("Mul", [x, x])
    square.outputs[0].shape = x.shape
    total, extra = _reduce_sum(node, square.outputs[0], opset)
    return [square, *extra, total]


def _reduce_l2(node: ir.Node, opset: int) -> list[ir.Node]:
    nodes = _reduce_sum_square(node, opset)
    return [*nodes, ir.node("Sqrt", [nodes[-1].outputs[0]])]


def _reduce_log_sum_exp(node: ir.Node, opset: int) -> list[ir.Node]:
    x = first(node)
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


def _lp_normalization(node: ir.Node, opset: int) -> list[ir.Node]:
    x, kind = first(node), dtype_of(node)
    op_type = "ReduceL1" if node.attributes.get_int("p", 2) == 1 else "ReduceL2"
    norm, extra = _reduction(op_type, x, [node.attributes.get_int("axis", -1)], opset)
    # The result is zero where the norm is zero.
    some = typed(ir.node("Cast", [norm.outputs[0]], attributes={"to": int(ir.DataType.BOOL)}), ir.DataType.BOOL)
    one = constant(np.ones((), kind.numpy()), kind)
    divisor = ir.node("Where", [some.outputs[0], norm.outputs[0], one.outputs[0]])
    return [*extra, norm, some, one, divisor, ir.node("Div", [x, divisor.outputs[0]])]


def _hard_swish(node: ir.Node, opset: int) -> list[ir.Node]:
    x = first(node)
    gate = typed(ir.node("HardSigmoid", [x], attributes={"alpha": 1 / 6, "beta": 0.5}), dtype_of(node))
    gate.outputs[0].shape = x.shape
    return [gate, ir.node("Mul", [x, gate.outputs[0]])]


def _reduction(op_type: str, x: ir.Value, axes: list[int], opset: int) -> tuple[ir.Node, list[ir.Node]]:
    """Return a reduction with kept dimensions, and the constant that holds its axes in newer opsets."""
    if opset < OPSET_REDUCTIONS_AXES:
        return ir.node(op_type, [x], attributes={"axes": axes}), []
    held = constant(np.array(axes, np.int64))
    return ir.node(op_type, [x, held.outputs[0]]), [held]


def _pieces(rewrite: Callable[[ir.Node, int], list[ir.Node]], since: int = 1) -> Rewrite:
    return lambda node, opset: spelled(rewrite(node, opset)) if opset >= since else None


REDUCTIONS: dict[str, Rewrite] = {
    "ReduceMean": _pieces(_reduce_mean, OPSET_WHERE),
    "ReduceL2": _pieces(_reduce_l2),
    "ReduceSumSquare": _pieces(_reduce_sum_square),
    "ReduceLogSumExp": _pieces(_reduce_log_sum_exp),
    "LpNormalization": _pieces(_lp_normalization, OPSET_WHERE),
    "CumSum": running_sum,
    "CumProd": running_product,
    "ScatterElements": scattered_elements,
    "ScatterND": scattered_nd,
    "Sum": chained_sum,
    "Mean": chained_mean,
}

GATES: dict[str, Rewrite] = {"HardSwish": _pieces(_hard_swish)}

_REWRITES: dict[str, Rewrite] = REDUCTIONS | GATES | dict.fromkeys(RECURRENT, in_steps)


def rounds_inside(op_type: str) -> str:
    """Describe what kernels of an operator keep in half inside; empty for those that keep nothing."""
    if op_type in REDUCTIONS:
        return "its kernel keeps sums in half"
    if op_type in GATES:
        return "its kernel keeps its gate in half"
    return "its kernel keeps states in half" if op_type in _REWRITES else ""


def _reduce_sum(node: ir.Node, x: ir.Value, opset: int) -> tuple[ir.Node, list[ir.Node]]:
    """Return a ReduceSum over the node's axes, and the constant that holds them in newer opsets."""
    attributes = {"keepdims": node.attributes.get_int("keepdims", 1)}
    if node.attributes.get_int("noop_with_empty_axes", 0):
        attributes["noop_with_empty_axes"] = 1
    axes = node.attributes.get("axes")
    if axes is None:
        inputs = [x, node.inputs[1]] if len(node.inputs) > 1 and node.inputs[1] is not None else [x]
        return ir.node("ReduceSum", inputs, attributes=attributes), []
    if opset < OPSET_AXES_AS_INPUT:
        return ir.node("ReduceSum", [x], attributes=attributes | {"axes": list(axes.as_ints())}), []
    held = constant(np.array(axes.as_ints(), np.int64))
    return ir.node("ReduceSum", [x, held.outputs[0]], attributes=attributes), [held]
