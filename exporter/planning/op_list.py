"""The op-level plan (`--no-calibrate`): decide from operators and constants alone, without measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from demi.calibration.emulation.widen import EXACT_OPS
from demi.exporter.operators import schemas
from demi.exporter.operators.integer_types import INTEGERS
from demi.exporter.operators.schemas import half_dtype
from demi.exporter.operators.tables import ARITHMETIC_ON_COUNTS, KEEP, NORMALIZING
from demi.exporter.planning.node_patterns import forced_nodes, named_nodes
from demi.exporter.planning.op_rules import (
    TYPE_RULES,
    OpFacts,
    Rule,
    Verdict,
    constant_out_of_range,
    first_verdict,
    holds_counts,
    is_reciprocal,
    no_half_kernel,
    pinned,
    steps_in_half,
)
from demi.float16 import HalfFormat
from demi.plan import Decision, Precision, PrecisionPlan, Reason, make_plan


@dataclass(frozen=True, slots=True)
class ListFacts(OpFacts):
    """The facts of the shared rules, and the normalizations."""

    normalizing: frozenset[ir.Node]
    """Nodes of normalizations written in primitives."""


def op_list_plan(
    model: ir.Model, fmt: HalfFormat, keep_fp32: Sequence[str] = (), force_half: Sequence[str] = ()
) -> PrecisionPlan:
    """Return the plan for a prepared model, from its operators and constants alone.

    `keep_fp32` holds node names, globs or operator types to pin; nodes that `force_half` names are half wherever their types
    allow. Nodes without float32 operands get no decision.
    """
    nodes = [node for node in model.graph.all_nodes() if schemas.touches_float(node)]
    kept, forced = named_nodes(model, keep_fp32), forced_nodes(model, force_half, keep_fp32)
    facts = ListFacts(model, fmt, half_dtype(fmt), _counting_values(nodes), kept, _normalization_nodes(nodes))
    return make_plan(fmt.name, (decide(node, facts, node.name in forced) for node in nodes))


def decide(node: ir.Node, facts: ListFacts, forced: bool = False) -> Decision:
    """Decide by the first rule that applies, else half; `forced` overrides all but the rules about types."""
    verdict = first_verdict(TYPE_RULES, node, facts)
    against = None if verdict else first_verdict(VALUE_RULES, node, facts)
    if single := verdict or (None if forced else against):
        return Decision(node.name or "", node.op_type, Precision.SINGLE, *single)
    reason, evidence = why_half((objection(against) if against else "") if forced else None)
    return Decision(node.name or "", node.op_type, Precision.HALF, reason, evidence or _assumed(node))


def _assumed(node: ir.Node) -> str:
    """Return which untyped operand is assumed to be float32, and why; empty where all types are known."""
    for value in node.inputs:
        if value is not None and schemas.is_float(value) and (reader := value.meta.get(schemas.INFERRED_FOR)):
            maker = value.producer()
            behind = f" behind {maker.op_type}" if maker is not None else ""
            return f"`{value.name}`{behind} is assumed to be float32, like the other operands of {reader}"
    return ""


def why_half(against: str | None) -> tuple[Reason, str]:
    """Return reason and evidence of a half node; a forced one has the objections to half (maybe empty) as evidence."""
    if against is None:
        return Reason.SAFE, ""
    return Reason.PINNED, f"--force-half, against {against}" if against else "--force-half"


def objection(verdict: tuple[Reason, str]) -> str:
    """Format a rule's verdict as an objection to half."""
    reason, evidence = verdict
    return f"{reason.value}: {evidence}"


def constants(node: ir.Node, facts: OpFacts) -> Verdict:
    """A constant operand that half cannot hold."""
    return constant_out_of_range(node, facts.fmt)


def counts(node: ir.Node, facts: OpFacts) -> Verdict:
    """Arithmetic on positions, lengths and counts."""
    return holds_counts(node.outputs, facts)


def normalization(node: ir.Node, facts: ListFacts) -> Verdict:
    """Part of a normalization written in primitives."""
    return (Reason.NORMALIZATION, "normalizes by a reduction of its input") if node in facts.normalizing else None


def listed(node: ir.Node, facts: OpFacts) -> Verdict:
    """An operator of the keep list."""
    return KEEP.get(node.op_type)


VALUE_RULES: tuple[Rule[ListFacts], ...] = (
    pinned,
    no_half_kernel,
    constants,
    counts,
    listed,
    steps_in_half,
    normalization,
)
"""The rules that `--force-half` overrides, in order."""


def _counting_values(nodes: Sequence[ir.Node]) -> frozenset[ir.Value]:
    """Return float values computed from integers alone: casts of integers, Range, and arithmetic on these.

    One pass in graph order: a node's float output counts when it has a counting input and its other float inputs
    count too or are constants. Masks do not count: a cast from bool holds only 0 and 1.
    """
    counting: set[ir.Value] = set()
    for node in nodes:
        floats = [value for value in node.inputs if schemas.is_float(value)]
        starts = node.op_type == "Range" or (
            node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype in INTEGERS
        )
        carries = (
            node.op_type in ARITHMETIC_ON_COUNTS | EXACT_OPS
            and any(value in counting for value in floats)
            and all(value in counting or (value is not None and value.const_value is not None) for value in floats)
        )
        if starts or carries:
            counting.update(value for value in node.outputs if schemas.is_float(value))
    return frozenset(counting)


def _normalization_nodes(nodes: Sequence[ir.Node]) -> frozenset[ir.Node]:
    """Return the primitives between a kept reduction and the division or product that applies it.

    From each reduction of floats forward through `NORMALIZING` operators up to and with the first Div (or the first
    Mul after a Sqrt or Reciprocal), and back to the centring Sub and the squaring node that feed the reduction.
    """
    fenced: set[ir.Node] = set()
    for node in nodes:
        reason = KEEP.get(node.op_type)
        if reason is None or reason[0] is not Reason.REDUCTION:
            continue
        path = _forward_to_root(node)
        if path:
            fenced.update(path)
            fenced.update(_squares_before(node))
    return frozenset(fenced)


def _forward_to_root(reduction: ir.Node) -> set[ir.Node]:
    """Return the nodes from the reduction to where its root or quotient is applied; empty when it normalizes nothing."""
    seen: set[ir.Node] = set()
    applied = False
    frontier = [reduction]
    while frontier:
        node = frontier.pop()
        for consumer in (use.node for value in node.outputs for use in value.uses()):
            if consumer in seen or consumer.op_type not in NORMALIZING | EXACT_OPS:
                continue
            seen.add(consumer)
            divides = consumer.op_type == "Div"
            scales = consumer.op_type == "Mul" and node.op_type in ("Sqrt", "Reciprocal", "Div", "Pow")
            applied = applied or divides or scales
            if not (scales or (divides and not is_reciprocal(consumer))):
                frontier.append(consumer)
    return seen if applied else set()


def _squares_before(reduction: ir.Node) -> set[ir.Node]:
    """Return the squaring node that feeds a reduction and the Sub that centres its input."""
    found: set[ir.Node] = set()
    square = reduction.inputs[0].producer() if reduction.inputs and reduction.inputs[0] is not None else None
    if square is not None and square.op_type in ("Mul", "Pow"):
        found.add(square)
        centre = square.inputs[0].producer() if square.inputs[0] is not None else None
        if centre is not None and centre.op_type == "Sub":
            found.add(centre)
    return found
