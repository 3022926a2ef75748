"""Costs of a node in half and in single: a roofline of bytes and FLOPs, or measured times.

time = max(bytes / bandwidth, FLOPs / rate) + launch, with one row of rates for each precision. (Williams, Waterman and
Patterson, "Roofline: an insightful visual performance model", 2009.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir

from demi.calibration.profile import RangeProfile
from demi.errors import InputError
from demi.exporter.operators.schemas import Operands, is_float

PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum", "FusedMatMul", "TransposeMatMul", "FusedGemm", "GemmFastGelu"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv"})
ATTENTIONS = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"})

CONTRACTIONS = PRODUCTS | CONVOLUTIONS | ATTENTIONS
"""Operators that sum products, which half's matrix units accelerate."""


@dataclass(frozen=True, slots=True)
class DeviceCosts:
    """Rates of a device; the defaults are the published figures of an H100 SXM, dense, with TF32 off."""

    bandwidth: float = 3.35e12
    """Bytes per second of device memory."""
    half_flops: float = 990e12
    """FLOPs per second of half matrix products."""
    single_flops: float = 67e12
    rows: int = 32
    """Batch size of the estimated times: observed tensors are scaled up to it."""
    launch_s: float = 0.0
    """Overhead of a kernel, in seconds. 0 plans for memory and large batches; 2e-6 for the latency of small ones."""
    seconds: Mapping[str, tuple[float, float]] | None = None
    """Measured (half, single) seconds of nodes by name, which replace the roofline."""


CPU_CORE = DeviceCosts(bandwidth=40e9, half_flops=2.56e12, single_flops=160e9, rows=8)
"""A CPU core with AMX at 2.5 GHz, by Intel's figures: 64 FLOPs a cycle in FP32 (two AVX-512 units), 1,024 in BF16.

The bandwidth, 16 bytes a cycle, is that of caches: what a layer writes, the next one finds there. Compared with a GPU,
FP32 products are dear beside casts.
"""


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Seconds in half and in single, with the bytes and FLOPs behind them."""

    half_s: float
    single_s: float
    elements: float
    """Float elements read and written that half would store in two bytes."""
    flops: float


def read_costs(path: Path) -> DeviceCosts:
    """Read a device's rates from a JSON file; raise InputError, which names the wrong field."""
    try:
        fields = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        costs = msgspec.convert(fields, DeviceCosts)
        problem = _problem(costs, fields)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error)
    if problem:
        raise InputError(
            f"the cost table cannot be read: {problem}",
            where=str(path),
            hint="write JSON with bandwidth, half_flops, single_flops, launch_s, rows, seconds",
        )
    return costs


def _problem(costs: DeviceCosts, fields: Mapping[str, Any]) -> str | None:
    """Return the problem of a table whose types are right; None without one."""
    unknown = fields.keys() - set(DeviceCosts.__slots__)
    if unknown:
        return f"unknown field `{min(unknown)}`"
    for name in ("bandwidth", "half_flops", "single_flops", "rows"):
        if not getattr(costs, name) > 0:
            return f"`{name}` is {getattr(costs, name):g}, which is not above zero"
    negative = [costs.launch_s, *(second for pair in (costs.seconds or {}).values() for second in pair)]
    return "a time is below zero" if min(negative) < 0 else None


TIE = 1 + 1e-6
"""Factor on measured half times: half that is only as fast as single saves nothing, and a tie goes to FP32."""


def node_cost(node: ir.Node, operands: Operands, sizes: Sizes, device: DeviceCosts) -> NodeCost:
    """Return the cost of one node on the observed shapes."""
    touched = [value for i, value in enumerate(node.inputs) if i in operands.inputs]
    touched += [value for i, value in enumerate(node.outputs) if i in operands.outputs]
    elements = float(sum(sizes.elements(value) for value in touched if is_float(value)))
    flops = node_flops(node, sizes)
    measured = (device.seconds or {}).get(node.name or "")
    if measured is not None:
        return NodeCost(measured[0] * TIE, measured[1], elements, flops)
    half = max(2 * elements / device.bandwidth, flops / device.half_flops) + device.launch_s
    single = max(4 * elements / device.bandwidth, flops / device.single_flops) + device.launch_s
    return NodeCost(half, single, elements, flops)


def cast_cost(elements: float, device: DeviceCosts) -> float:
    """Return the seconds of one Cast between half and single: six bytes an element, and a launch."""
    return 6 * elements / device.bandwidth + device.launch_s


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of elements of tensors, as observed and scaled to the batch size of the estimated times."""

    profile: RangeProfile
    scale: float = 1.0

    def elements(self, value: ir.Value | None) -> float:
        """Return the elements of a tensor, by its static shape if it was not observed."""
        if value is None:
            return 0.0
        if value.const_value is not None:
            return float(value.const_value.size)
        found = self.profile.get(value.name)
        if found is not None:
            return found.elements_per_set * self.scale
        known = [dim for dim in value.shape if isinstance(dim, int)] if value.shape is not None else []
        return math.prod(known) * self.scale


def crossing_costs(value: ir.Value, sizes: Sizes, device: DeviceCosts, *, paid: bool) -> tuple[float, float]:
    """Return the seconds of a cast of one tensor to half and to single.

    A cast at the border of a graph counts only if `paid`: at the model's own inputs and outputs unless `--half-io`
    omits it, but not at those of a loop's body. A cast behind a matrix product is fused into the kernel's epilogue, and
    one before a model's first products comes with the copy of the input: both cost two bytes an element.
    """
    elements = sizes.elements(value)
    full = cast_cost(elements, device)
    beside = min(full, 2 * elements / device.bandwidth)
    node = value.producer()
    if node is None:
        before_products = any(use.node.op_type in CONTRACTIONS for use in value.uses())
        return 0.0 if not paid else beside if before_products else full, full
    if value.is_graph_output() and not value.uses() and not paid:
        return full, 0.0
    return full, beside if node.op_type in CONTRACTIONS else full


def node_flops(node: ir.Node, sizes: Sizes) -> float:
    """Return the FLOPs of a node: two for a multiply-add of matrix products and convolutions, else one an element."""
    out = sizes.elements(node.outputs[0] if node.outputs else None)
    if node.op_type in ATTENTIONS:
        return _attention_flops(node, out, sizes)
    if node.op_type in PRODUCTS:
        left, right = (sizes.elements(node.inputs[i]) if len(node.inputs) > i else 1 for i in (0, 1))
        return 2.0 * out * _inner_dimension(node, left, right, out)
    if node.op_type in CONVOLUTIONS and len(node.inputs) > 1:
        weight = node.inputs[1]
        channels = weight.shape[0] if weight is not None and weight.shape is not None else 1
        return 2.0 * out * sizes.elements(weight) / max(channels if isinstance(channels, int) else 1, 1)
    if node.op_type in ("LSTM", "GRU", "RNN") and len(node.inputs) > 2:
        return 2.0 * out * sum(sizes.elements(value) for value in node.inputs[1:3]) / max(1, _last(node.inputs[1]))
    return float(out)


def _attention_flops(node: ir.Node, out: float, sizes: Sizes) -> float:
    """Return the FLOPs of two products of every query with every key: scores, and weighted values.

    ONNX Runtime's own Attention multiplies its input by one weight for queries, keys and values first.
    """
    if node.domain == "com.microsoft" and node.op_type == "Attention":
        hidden = max(_last(node.inputs[0]), 1)
        return 2.0 * out * (sizes.elements(node.inputs[1]) / hidden + 2.0 * _positions(node.inputs[0]))
    return 4.0 * out * _positions(node.inputs[1] if len(node.inputs) > 1 else None)


def _positions(value: ir.Value | None) -> int:
    """Return the number of key positions, which is the axis before the last; 1 if it is free."""
    if value is None or value.shape is None or len(value.shape) < 2:
        return 1
    positions = value.shape[-2]
    return positions if isinstance(positions, int) else 1


def _inner_dimension(node: ir.Node, left: float, right: float, out: float) -> float:
    """Return K of an M x K by K x N product: the operand's own dimension, else sqrt(MK * KN / MN)."""
    first = node.inputs[0]
    if node.op_type == "MatMul" and (inner := _last(first)) > 0:
        return inner
    return float(np.sqrt(left * right / max(out, 1)))


def _last(value: ir.Value | None) -> int:
    if value is None or value.shape is None or not len(value.shape):
        return 0
    last = value.shape[-1]
    return last if isinstance(last, int) else 0
