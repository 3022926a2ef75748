"""The facts that rules use: operators, ranges, values that hold integer counts, and divisions guarded by an epsilon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from demi.calibration.emulation.widen import EXACT_OPS
from demi.calibration.profile import RangeProfile
from demi.exporter.operators import schemas
from demi.exporter.operators.epsilons import find_epsilons
from demi.exporter.operators.integer_types import WIDE_INTEGERS
from demi.exporter.operators.mask_constants import Masks, find_masks
from demi.exporter.operators.schemas import Operands, half_dtype
from demi.exporter.planning.node_patterns import named_nodes
from demi.exporter.planning.op_rules import OpFacts, constant_out_of_range, is_reciprocal
from demi.float16 import HalfFormat
from demi.plan import Reason

GUARDED = frozenset({"Sqrt", "Reciprocal", "Div", "Log", "Pow"})
"""Operators that would return infinity without a small constant before them."""

CARRIES_COUNTS = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Floor",
        "Ceil",
        "Round",
        "Mod",
        "Min",
        "Max",
        "Clip",
        "Abs",
        "Pow",
        "Sqrt",
        "Log",
        "Reciprocal",
        "Sum",
        "CumSum",
    }
) | (EXACT_OPS - {"Where", "TopK"})
"""Operators whose result is a count when their operand is."""


@dataclass(frozen=True, slots=True)
class Measured(OpFacts):
    """The facts of the shared rules, and the measured ranges of the tensors."""

    profile: RangeProfile
    guarded: frozenset[ir.Node]
    masks: Masks
    operands: dict[str, Operands]
    epsilons: frozenset[ir.Value]
    """Epsilons that would vanish, and become half's smallest number."""

    @property
    def epsilon_names(self) -> frozenset[str]:
        """Return the epsilons' names, for the plan."""
        return frozenset(value.name or "" for value in self.epsilons)

    def half_operands(self, node: ir.Node) -> Operands:
        """Return the operands of a node that may be half, which were looked up once."""
        return self.operands[node.name or ""]


def measured_facts(model: ir.Model, fmt: HalfFormat, profile: RangeProfile, keep_fp32: Sequence[str] = ()) -> Measured:
    """Collect the facts about a prepared model."""
    half = half_dtype(fmt)
    operands = {
        node.name or "": schemas.half_operands(node, schemas.opset_version(node, model), half)
        for node in model.graph.all_nodes()
        if schemas.touches_float(node)
    }
    epsilons = find_epsilons(model, profile, fmt)
    return Measured(
        model=model,
        fmt=fmt,
        half=half,
        counting=counting_values(model, profile),
        pinned=named_nodes(model, keep_fp32),
        profile=profile,
        guarded=guarded_nodes(model, fmt, epsilons),
        masks=find_masks(model, profile, fmt),
        operands=operands,
        epsilons=epsilons,
    )


def counting_values(model: ir.Model, profile: RangeProfile) -> frozenset[ir.Value]:
    """Return the float values that hold counts: from Range, CumSum and casts of integers, through arithmetic alone.

    A cast whose values stayed within [-1, 1] is a mask, not a count. An outer product of a count with a constant (the
    angles of a rotary embedding) is a count, too; other matrix products are not.
    """
    counting: set[ir.Value] = set()
    for node in model.graph.all_nodes():
        outputs = [value for value in node.outputs if schemas.is_float(value)]
        if not outputs:
            continue
        floats = [value for value in node.inputs if value is not None and schemas.is_float(value)]
        if _starts_counting(node, profile) or (
            any(value in counting for value in floats)
            and all(value in counting or value.const_value is not None for value in floats)
            and (node.op_type in CARRIES_COUNTS or _is_outer_product(node))
        ):
            counting.update(outputs)
    return frozenset(counting)


def guarded_nodes(model: ir.Model, fmt: HalfFormat, epsilons: frozenset[ir.Value] = frozenset()) -> frozenset[ir.Node]:
    """Return the nodes after a vanishing constant, up to and including the division, root or logarithm it guards.

    From each node with a scalar constant operand that half would make zero, forward through exact operators and
    `GUARDED` ones; a Mul or Div after a root applies it and ends the walk. `epsilons` do not become zero.
    """
    nodes = list(model.graph.all_nodes())
    starts = [
        node
        for node in nodes
        if schemas.touches_float(node)
        and (verdict := constant_out_of_range(node, fmt, skip=epsilons))
        and verdict[0] is Reason.VANISHING_CONSTANT
    ]
    return guarded_behind(starts)


def guarded_behind(starts: Sequence[ir.Node]) -> frozenset[ir.Node]:
    """The nodes after these, up to and with the division, root or logarithm that what they add keeps from zero."""
    guarded: set[ir.Node] = set()
    frontier = list(starts)
    while frontier:
        node = frontier.pop()
        for consumer in (use.node for value in node.outputs for use in value.uses()):
            ends = consumer.op_type == "Div" or (
                consumer.op_type == "Mul" and node.op_type in ("Reciprocal", "Pow", "Div")
            )
            if consumer in guarded or not (ends or consumer.op_type in GUARDED | EXACT_OPS):
                continue
            guarded.add(consumer)
            if not ends or is_reciprocal(consumer):
                frontier.append(consumer)
    return frozenset(guarded)


def _starts_counting(node: ir.Node, profile: RangeProfile) -> bool:
    if node.op_type in ("Range", "CumSum"):
        found = profile.get(node.outputs[0].name)
        return found is None or found.integer_valued
    if node.op_type != "Cast" or node.inputs[0] is None or node.inputs[0].dtype not in WIDE_INTEGERS:
        return False
    found = profile.get(node.outputs[0].name)
    return found is None or found.largest > 1


def _is_outer_product(node: ir.Node) -> bool:
    """Return whether a node is a MatMul over an inner dimension of one."""
    if node.op_type != "MatMul" or node.inputs[0] is None or node.inputs[0].shape is None:
        return False
    shape = node.inputs[0].shape
    return len(shape) > 0 and shape[-1] == 1
