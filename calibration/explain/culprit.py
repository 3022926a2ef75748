"""Naming the node by which the answer breaks, and saying in one sentence what happens there.

The half model is computed in half up to some node, and in FP32 from there on. With more and more nodes in half there is
a first one with which the outputs are half as wrong as they will be in the end, or no longer finite: bisection finds
it in a few runs. When the error jumps there, that node is the culprit: not where an infinity comes to light (the division by an
epsilon that had become zero), nor where an error grows (the difference of two large numbers), but where what
was needed is lost. When it does not jump, no single node is to blame: ordinary rounding adds up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from demi.calibration.emulation.kernels import rounds_inside
from demi.calibration.emulation.trials import tensor_error
from demi.calibration.emulation.widen import HALF_TYPES
from demi.calibration.explain.trace import NodeTrace
from demi.float16 import BF16, HalfFormat, from_half, round_through
from demi.tensors import Array

ORDINARY = 2.0
"""Relative error, in units of half's epsilon, that is no sign of anything broken: four times what one rounding can make."""

JUMP = 4.0
"""How many times larger an error leaves a node than enters it, where it counts as magnified."""

CULPABLE = 0.5
"""The share of the squared error of the outputs that one node must bring along to be the culprit."""

MOST_BREAKS = 8
"""How many are looked for; whoever repairs eight will want to look again."""

SAME_WEIGHT = 1e-6
"""Relative L2 between a half weight and the reference's, rounded, within which nothing was changed."""


@dataclass(frozen=True, slots=True)
class Culprit:
    """The node by which the answer breaks: the error of the outputs without it, with it, and the sentence."""

    node: str
    op_type: str
    before: float
    """Error of the worst output, as a share of its budget, with the nodes before it in half and all others in FP32."""
    after: float
    """The same with it in half as well."""
    sentence: str


@dataclass(frozen=True, slots=True)
class Break:
    """A node's place in the order of execution, from 1, and the error of the outputs without and with it in half."""

    position: int
    before: float
    after: float


def find_breaks(nodes: int, error_upto: Callable[[int], float]) -> list[Break]:
    """The nodes by which the outputs break, in order; empty when the error only adds up.

    `error_upto(k)` is the error of the outputs with the first k nodes in half. When they were over budget before the
    node that was found, there is an earlier one.
    """
    error = functools.cache(error_upto)
    found: list[Break] = []
    while nodes and len(found) < MOST_BREAKS:
        last = _last_break(nodes, error)
        if last is None:
            break
        found.insert(0, last)
        nodes = last.position - 1 if last.before > 1 else 0
    return found


def _last_break(nodes: int, error: Callable[[int], float]) -> Break | None:
    """The node that brings most of the error of so many nodes in half, found by bisection."""
    total = error(nodes)
    if not total:
        return None
    enough = math.inf if math.isinf(total) else total / 2
    low, high = 0, nodes
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if error(middle) >= enough else (middle, high)
    before, after = error(low), error(high)
    brought = 1.0 if math.isinf(after) else 1 - (before / after) ** 2
    return Break(high, before, after) if brought >= CULPABLE else None


def describe(found: Break, traces: Sequence[NodeTrace], weights: Sequence[str], fmt: HalfFormat) -> str:
    """What happens at a node, in one sentence: overflow, a weight, something that vanishes, or a loss that is magnified."""
    trace = traces[found.position - 1]
    verdict = (
        "is where the answer breaks"
        if found.after > 1
        else f"brings most of the error, {found.after:.2g} of the budget"
    )
    shown = "; first non-finite value" if trace is first_non_finite(traces) else ""
    return f"`{trace.node}` ({_role(trace, traces)}) {verdict}: {_cause(trace, traces, weights, fmt)}{shown}"


def _cause(trace: NodeTrace, traces: Sequence[NodeTrace], weights: Sequence[str], fmt: HalfFormat) -> str:
    adds = trace.adds or 0.0
    if trace.non_finite and trace.largest >= fmt.overflows_from:
        return f"its output reaches {trace.largest:.3g}, beyond {fmt.name}'s {fmt.max:.6g}"
    if weights:
        return "; ".join(weights)
    if trace.non_finite:
        inside = rounds_inside(trace.op_type)
        words = f"{trace.non_finite:,} elements of its output are NaN or infinite where FP32 is finite"
        return f"{words}; {inside}" if inside else words
    if trace.vanished and adds > ORDINARY * fmt.epsilon:
        return f"{trace.vanished:,} elements of its output become 0 where FP32 is not"
    if adds > ORDINARY * fmt.epsilon:
        return f"with exact inputs its output is off by {adds:.2g}; rounding once makes {fmt.epsilon / 2:.1g} at most"
    return f"what rounding loses in its output ({adds:.2g}) is needed{_magnifier(trace, traces)}"


def first_non_finite(traces: Sequence[NodeTrace]) -> NodeTrace | None:
    """The first node whose output is NaN or infinite where FP32 is finite."""
    return next((trace for trace in traces if trace.non_finite), None)


def _role(trace: NodeTrace, traces: Sequence[NodeTrace]) -> str:
    """The operator, and for a cast whom it serves."""
    readers = [other.node for other in traces if trace.node in other.reads]
    if trace.op_type != "Cast" or trace.reason or not readers:
        return trace.op_type
    return f"Cast, for `{readers[0]}`" if len(readers) == 1 else f"Cast, for `{readers[0]}` and {len(readers) - 1} more"


def _magnifier(trace: NodeTrace, traces: Sequence[NodeTrace]) -> str:
    """The first node behind `trace` where an error grows."""
    reached = {trace.node}
    for other in traces[trace.position :]:
        if reached.isdisjoint(other.reads):
            continue
        reached.add(other.node)
        if other.leaves and other.leaves >= JUMP * max(other.enters, trace.adds or 0.0):
            return f": `{other.node}` ({other.op_type}) makes {other.leaves:.2g} of it"
    return " further on"


def strange_weights(node: ir.Node | None, twin: ir.Node | None, fmt: HalfFormat) -> list[str]:
    """What is wrong with the constants that a node of the half model reads, against its namesake in the reference.

    A constant that vanishes altogether, or one that is not the reference's rounded.
    """
    pairs = zip(node.inputs, twin.inputs, strict=False) if node is not None and twin is not None else ()
    found = []
    for mine, theirs in pairs:
        half, single = _numbers(mine, fmt), _numbers(theirs, fmt)
        if half is None or single is None or half.shape != single.shape or mine is None or theirs is None:
            continue
        if single.any() and not half.any():
            found.append(
                f"its constant `{mine.name}` is 0, where `{theirs.name}` is {np.abs(single).max():.3g} in FP32"
            )
        elif (off := _strangeness(half, single, fmt)) > SAME_WEIGHT:
            found.append(
                f"its weight `{mine.name}` is not the reference's `{theirs.name}`: {off:.2g} relative L2 apart"
            )
    return found


def _strangeness(half: Array, single: Array, fmt: HalfFormat) -> float:
    """How far a half weight is from the reference's rounded; what is drawn in to half's range (masks) does not count."""
    fits = np.abs(single) < fmt.overflows_from
    return tensor_error(round_through(single, fmt)[fits], half[fits]).relative


def _numbers(value: ir.Value | None, fmt: HalfFormat) -> Array | None:
    if value is None or value.const_value is None or value.dtype not in (ir.DataType.FLOAT, *HALF_TYPES):
        return None
    numbers = value.const_value.numpy()
    if value.dtype is ir.DataType.FLOAT:
        return numbers
    return from_half(numbers.view(np.uint16) if fmt is BF16 else numbers, fmt)


def by_name(model: ir.Model) -> Mapping[str, ir.Node]:
    """A model's nodes by name."""
    return {node.name or "": node for node in model.graph.all_nodes()}
