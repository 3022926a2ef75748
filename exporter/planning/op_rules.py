"""Rules about a node's operator, types and constants, shared by the op list and the measured plan.

Every rule is a small function `(node, facts) -> (Reason, evidence) | None`; the first that returns a verdict decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import onnx_ir as ir

from demi.calibration.emulation.recurrent import RECURRENT, takes_steps
from demi.calibration.random_draws import is_random
from demi.calibration.weights import constant_loss
from demi.exporter.operators import schemas
from demi.exporter.operators.tables import NO_HALF_KERNEL, SCATTERS
from demi.float16 import HalfFormat
from demi.plan import Reason

Verdict = tuple[Reason, str] | None
"""The reason that a node must stay single, and the evidence; None where a rule does not apply."""


@dataclass(frozen=True, slots=True)
class OpFacts:
    """The facts that every rule may use besides the node."""

    model: ir.Model
    fmt: HalfFormat
    half: ir.DataType
    counting: frozenset[ir.Value]
    """Float values that hold positions, lengths or counts."""
    pinned: Mapping[str, str]
    """The nodes that `--keep-fp32` names, each with the pattern that matches it."""

    def half_operands(self, node: ir.Node) -> schemas.Operands:
        """Return the operands of a node that may be half."""
        return schemas.half_operands(node, schemas.opset_version(node, self.model), self.half)


F = TypeVar("F", bound=OpFacts)
Rule = Callable[[ir.Node, F], Verdict]


def first_verdict(rules: Iterable[Rule[F]], node: ir.Node, facts: F) -> Verdict:
    """Return the verdict of the first rule that applies; None if none does."""
    return next((verdict for rule in rules if (verdict := rule(node, facts))), None)


def control_flow(node: ir.Node, facts: OpFacts) -> Verdict:
    """If, Loop and Scan keep the types of their inputs and outputs."""
    return (Reason.CONTROL_FLOW, f"the border of a {node.op_type}") if schemas.has_body(node) else None


def draws(node: ir.Node, facts: OpFacts) -> Verdict:
    """Random numbers: half would draw different or coarser ones than FP32."""
    return (Reason.RANDOM, f"{node.op_type} draws random numbers") if is_random(node) else None


def no_half_type(node: ir.Node, facts: OpFacts) -> Verdict:
    """The operator's schema does not allow half, or the operator has no schema."""
    version = schemas.opset_version(node, facts.model)
    schema = schemas.find_schema(node.op_type, node.domain, version)
    if schema is None:
        return (
            Reason.UNKNOWN_OP,
            f"{node.domain or 'ai.onnx'}::{node.op_type} has no schema that ONNX or ONNX Runtime knows",
        )
    if facts.half_operands(node):
        return None
    newer = schemas.half_since(node, version, facts.half)
    since = f"; from opset {newer} on it does" if newer else ""
    lacks = f"{node.op_type} (opset {version}) takes no {facts.half.name.lower()}{since}"
    return Reason.NO_HALF_TYPE, schemas.why_bound(node, schema, facts.half) or lacks


TYPE_RULES: tuple[Rule[OpFacts], ...] = (control_flow, draws, no_half_type)
"""The rules that `--force-half` does not override."""


def pinned(node: ir.Node, facts: OpFacts) -> Verdict:
    """The node is named by `--keep-fp32`: by name, glob or operator type."""
    pattern = facts.pinned.get(node.name or "")
    return None if pattern is None else (Reason.PINNED, f"--keep-fp32 {pattern}")


def no_half_kernel(node: ir.Node, facts: OpFacts) -> Verdict:
    """The schema allows half, but no runtime has a kernel for it."""
    return (Reason.NO_HALF_KERNEL, f"no half kernel for {node.op_type}") if node.op_type in NO_HALF_KERNEL else None


def steps_in_half(node: ir.Node, facts: OpFacts) -> Verdict:
    """The kernel accumulates step by step and rounds each: a reducing scatter, a recurrence that cannot be emulated."""
    if node.op_type in RECURRENT and not takes_steps(node, schemas.opset_version(node, facts.model)):
        return Reason.REDUCTION, "its state is rounded at every step, which cannot be emulated in this form"
    reduction = node.attributes.get("reduction")
    return SCATTERS.get((node.op_type, reduction.as_string())) if reduction is not None else None


def constant_out_of_range(node: ir.Node, fmt: HalfFormat, skip: frozenset[ir.Value] = frozenset()) -> Verdict:
    """A constant operand that half cannot hold: a number beyond the range, or a scalar that would become zero."""
    for value in node.inputs:
        if value is None or value.const_value is None or value in skip or not schemas.is_float(value):
            continue
        loss = constant_loss(value, fmt)
        if loss.overflowed:
            return Reason.OVERFLOWING_CONSTANT, f"`{value.name}` holds {loss.largest:g}, beyond {fmt.max:g}"
        if loss.vanished and value.const_value.size == 1:  # an epsilon; single elements of a weight may well vanish
            return Reason.VANISHING_CONSTANT, f"`{value.name}` is {loss.largest:g}, which is 0 in {fmt.name}"
    return None


def holds_counts(values: Iterable[ir.Value | None], facts: OpFacts) -> Verdict:
    """One of the values holds positions, lengths or counts."""
    for value in values:
        if value is not None and value in facts.counting:
            return (
                Reason.INTEGER_VALUED,
                f"`{value.name}` is made of counts: half is exact only to {facts.fmt.exact_integers:,}",
            )
    return None


def is_reciprocal(node: ir.Node) -> bool:
    """Return whether a node is a Div of a scalar constant by a tensor, such as 1 / x, which a later Mul applies."""
    numerator = node.inputs[0] if node.inputs else None
    return (
        node.op_type == "Div"
        and numerator is not None
        and numerator.const_value is not None
        and numerator.const_value.size == 1
    )
