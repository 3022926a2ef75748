"""Find the nodes that break the outputs, and describe in one sentence what happens there.

The model is run in half up to some node, and in FP32 from there on. With more and more nodes in half, there is a first
node with which the outputs reach half of their final error, or stop being finite: bisection finds it in a few runs. If
the error jumps there, that node is the culprit: the node that loses needed information, not the one where an infinity
first appears (a division by an epsilon that became zero) or where an error grows (a difference of two large numbers).
If it does not jump, no single node is to blame: ordinary rounding errors add up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from demi.calibration.emulation.kernels import rounds_inside
from demi.calibration.emulation.tensor_errors import tensor_error
from demi.calibration.emulation.widen import HALF_TYPES
from demi.calibration.explain.trace import NodeTrace
from demi.float16 import BF16, HalfFormat, from_half, round_through
from demi.tensors import Array

ORDINARY = 2.0
"""Relative error up to which rounding is ordinary, in units of half's epsilon: four times the error of one rounding."""

JUMP = 4.0
"""Ratio of the error that leaves a node to the one that enters it, from which the node magnifies."""

CULPABLE = 0.5
"""Least share of the outputs' squared error that one node must add to be the culprit."""

MOST_BREAKS = 8
"""Most culprits to find; after repairing eight, another run shows the rest."""

SAME_WEIGHT = 1e-6
"""Largest relative L2 between a half weight and the reference's rounded weight for which they count as equal."""


@dataclass(frozen=True, slots=True)
class Culprit:
    """A node that breaks the outputs: the error without and with it in half, and a sentence that describes it."""

    node: str
    op_type: str
    before: float
    """Error of the worst output, as a share of its budget, with only the nodes before this one in half."""
    after: float
    """The same error with this node in half as well."""
    sentence: str


@dataclass(frozen=True, slots=True)
class Break:
    """A node's position in the order of execution, from 1, and the outputs' error without and with it in half."""

    position: int
    before: float
    after: float


def find_breaks(nodes: int, error_upto: Callable[[int], float]) -> list[Break]:
    """Return the nodes that break the outputs, in order; empty when ordinary errors add up.

    `error_upto(k)` is the error of the outputs with the first k nodes in half. If the outputs are over budget before
    the node that was found, an earlier one is searched for.
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
    """Find, by bisection, the node that adds most of the error of the first `nodes` nodes; None if no node does."""
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
    """Describe a break in one sentence: an overflow, a wrong weight, a value that vanishes, or a magnified error."""
    trace = traces[found.position - 1]
    effect = "breaks the outputs" if found.after > 1 else f"adds most of the error, {found.after:.2g} of the budget"
    shown = "; first non-finite value" if trace is first_non_finite(traces) else ""
    return f"`{trace.node}` ({_role(trace, traces)}) {effect}: {_cause(trace, traces, weights, fmt)}{shown}"


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
        return f"{trace.vanished:,} elements of its output become 0 where FP32 is not 0"
    if adds > ORDINARY * fmt.epsilon:
        return f"with exact inputs its output is off by {adds:.2g}; one rounding explains at most {fmt.epsilon / 2:.1g}"
    return f"the rounding error of its output ({adds:.2g}) is magnified{_magnifier(trace, traces)}"


def first_non_finite(traces: Sequence[NodeTrace]) -> NodeTrace | None:
    """Return the first node whose output is NaN or infinite where FP32 is finite; None if there is none."""
    return next((trace for trace in traces if trace.non_finite), None)


def _role(trace: NodeTrace, traces: Sequence[NodeTrace]) -> str:
    """Return the operator; for a cast, also the nodes that read it."""
    readers = [other.node for other in traces if trace.node in other.reads]
    if trace.op_type != "Cast" or trace.reason or not readers:
        return trace.op_type
    return f"Cast, for `{readers[0]}`" if len(readers) == 1 else f"Cast, for `{readers[0]}` and {len(readers) - 1} more"


def _magnifier(trace: NodeTrace, traces: Sequence[NodeTrace]) -> str:
    """Name the first node behind `trace` that magnifies the error."""
    reached = {trace.node}
    for other in traces[trace.position :]:
        if reached.isdisjoint(other.reads):
            continue
        reached.add(other.node)
        if other.leaves and other.leaves >= JUMP * max(other.enters, trace.adds or 0.0):
            return f": `{other.node}` ({other.op_type}) turns it into {other.leaves:.2g}"
    return " by later nodes"


def strange_weights(node: ir.Node | None, twin: ir.Node | None, fmt: HalfFormat) -> list[str]:
    """Describe constants of a half node that are wrong, compared with the node of the same name in the reference.

    A constant is wrong if all of it vanishes, or if it is not the reference's constant, rounded.
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
                f"its weight `{mine.name}` differs from the reference's `{theirs.name}` by {off:.2g} relative L2"
            )
    return found


def _strangeness(half: Array, single: Array, fmt: HalfFormat) -> float:
    """Return the relative L2 between a half weight and the reference's, rounded.

    Clamped elements (masks) do not count, and neither does an epsilon that is half's smallest number instead of 0.
    """
    rounded = round_through(single, fmt)
    fits = np.abs(single) < fmt.overflows_from
    fits &= (single == 0) | (rounded != 0) | (np.abs(half) != fmt.smallest_subnormal)
    return tensor_error(rounded[fits], half[fits]).relative


def _numbers(value: ir.Value | None, fmt: HalfFormat) -> Array | None:
    if value is None or value.const_value is None or value.dtype not in (ir.DataType.FLOAT, *HALF_TYPES):
        return None
    numbers = value.const_value.numpy()
    if value.dtype is ir.DataType.FLOAT:
        return numbers
    return from_half(numbers.view(np.uint16) if fmt is BF16 else numbers, fmt)


def by_name(model: ir.Model) -> Mapping[str, ir.Node]:
    """Return a model's nodes by name."""
    return {node.name or "": node for node in model.graph.all_nodes()}
