"""The op-level plan: what stays FP32 when nothing was measured (`--no-calibrate`).

Every rule is a small function `(node, facts) -> (Reason, evidence) | None`; the first that answers decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from demi.calibration.emulation.recurrent import RECURRENT, takes_steps
from demi.calibration.emulation.widen import EXACT_OPS
from demi.calibration.random_draws import is_random
from demi.calibration.weights import constant_loss
from demi.exporter.operators import schemas
from demi.exporter.operators.schemas import half_dtype
from demi.exporter.operators.tables import (
    ARITHMETIC_ON_COUNTS,
    KEEP,
    NO_HALF_KERNEL,
    NORMALIZING,
    SCATTERS,
)
from demi.exporter.planning.node_patterns import forced_nodes, named_nodes
from demi.float16 import HalfFormat
from demi.plan import Decision, Precision, PrecisionPlan, Reason, make_plan

Verdict = tuple[Reason, str] | None

INTEGERS = frozenset(
    {
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
    }
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules may look at besides the node."""

    model: ir.Model
    fmt: HalfFormat
    half: ir.DataType
    counting: frozenset[ir.Value]
    """Float values that hold positions, lengths or counts."""
    normalizing: frozenset[ir.Node]
    """Nodes of normalizations written in primitives."""
    pinned: Mapping[str, str]
    """The nodes that `--keep-fp32` names, each with the pattern that fits it."""


def op_list_plan(
    model: ir.Model, fmt: HalfFormat, keep_fp32: Sequence[str] = (), force_half: Sequence[str] = ()
) -> PrecisionPlan:
    """The plan for a prepared model, from its operators and constants alone.

    `keep_fp32` holds node names, globs or operator types to pin; what `force_half` names is half wherever its types
    allow. Nodes without float32 operands get no decision.
    """
    nodes = [node for node in model.graph.all_nodes() if schemas.touches_float(node)]
    kept, forced = named_nodes(model, keep_fp32), forced_nodes(model, force_half, keep_fp32)
    facts = Facts(model, fmt, half_dtype(fmt), _counting_values(nodes), _normalization_nodes(nodes), kept)
    return make_plan(fmt.name, (decide(node, facts, node.name in forced) for node in nodes))


def decide(node: ir.Node, facts: Facts, forced: bool = False) -> Decision:
    """The first rule's verdict, or half; a forced node answers to the rules about types alone."""
    against = ""
    for rule in RULES:
        verdict = rule(node, facts)
        if verdict and (not forced or rule in RULES[:3]):
            return Decision(node.name or "", node.op_type, Precision.SINGLE, *verdict)
        if verdict and not against:
            against = objection(verdict)
    reason, evidence = why_half(against if forced else None)
    return Decision(node.name or "", node.op_type, Precision.HALF, reason, evidence or _assumed(node))


def _assumed(node: ir.Node) -> str:
    """Which operand's type nothing states, and why it is taken for float32; empty where all are known."""
    for value in node.inputs:
        if value is not None and schemas.is_float(value) and (reader := value.meta.get(schemas.TAKEN_FOR)):
            maker = value.producer()
            behind = f" behind {maker.op_type}" if maker is not None else ""
            return f"`{value.name}`{behind} is taken for float32, as what {reader} takes with it"
    return ""


def why_half(against: str | None) -> tuple[Reason, str]:
    """Reason and evidence of a half node; for one that is forced, what speaks against it, if only an empty text."""
    if against is None:
        return Reason.SAFE, ""
    return Reason.PINNED, f"--force-half, against {against}" if against else "--force-half"


def objection(verdict: tuple[Reason, str]) -> str:
    """What a rule says against half, in words."""
    reason, evidence = verdict
    return f"{reason.value}: {evidence}"


def pinned(node: ir.Node, facts: Facts) -> Verdict:
    """`--keep-fp32`, by name, glob or operator type."""
    pattern = facts.pinned.get(node.name or "")
    return None if pattern is None else (Reason.PINNED, f"--keep-fp32 {pattern}")


def control_flow(node: ir.Node, facts: Facts) -> Verdict:
    """If, Loop and Scan keep the types at their border."""
    return (Reason.CONTROL_FLOW, f"the border of a {node.op_type}") if schemas.has_body(node) else None


def no_half_type(node: ir.Node, facts: Facts) -> Verdict:
    """The schema takes no half, or there is no schema."""
    version = schemas.opset_version(node, facts.model)
    schema = schemas.find_schema(node.op_type, node.domain, version)
    if schema is None:
        return (
            Reason.UNKNOWN_OP,
            f"{node.domain or 'ai.onnx'}::{node.op_type} has no schema that ONNX or ONNX Runtime knows",
        )
    if schemas.half_operands(node, version, facts.half):
        return None
    newer = schemas.half_since(node, version, facts.half)
    since = f"; from opset {newer} on it does" if newer else ""
    lacks = f"{node.op_type} (opset {version}) takes no {facts.half.name.lower()}{since}"
    return Reason.NO_HALF_TYPE, schemas.what_binds(node, schema, facts.half) or lacks


def draws(node: ir.Node, facts: Facts) -> Verdict:
    """Random numbers: half would draw others than FP32 does, or a coarser kind of them."""
    return (Reason.RANDOM, f"{node.op_type} draws random numbers") if is_random(node) else None


def no_half_kernel(node: ir.Node, facts: Facts) -> Verdict:
    """The schema allows half, but no runtime computes it."""
    return (Reason.NO_HALF_KERNEL, f"no half kernel for {node.op_type}") if node.op_type in NO_HALF_KERNEL else None


def constant_out_of_range(node: ir.Node, facts: Facts, skip: frozenset[ir.Value] = frozenset()) -> Verdict:
    """A constant operand that half cannot hold: a number beyond the range, or a scalar that would become zero."""
    for value in node.inputs:
        if value is None or value.const_value is None or value in skip or not schemas.is_float(value):
            continue
        loss = constant_loss(value, facts.fmt)
        if loss.overflowed:
            return Reason.OVERFLOWING_CONSTANT, f"`{value.name}` holds {loss.largest:g}, beyond {facts.fmt.max:g}"
        if loss.vanished and value.const_value.size == 1:  # an epsilon; single elements of a weight may well vanish
            return Reason.VANISHING_CONSTANT, f"`{value.name}` is {loss.largest:g}, which is 0 in {facts.fmt.name}"
    return None


def counts(node: ir.Node, facts: Facts) -> Verdict:
    """Arithmetic on positions, lengths and counts."""
    for value in node.outputs:
        if value in facts.counting:
            return (
                Reason.INTEGER_VALUED,
                f"`{value.name}` is made of counts: half is exact only to {facts.fmt.exact_integers:,}",
            )
    return None


def normalization(node: ir.Node, facts: Facts) -> Verdict:
    """Part of a normalization written in primitives."""
    return (Reason.NORMALIZATION, "normalizes by a reduction of its input") if node in facts.normalizing else None


def listed(node: ir.Node, facts: Facts) -> Verdict:
    """An operator of the keep list."""
    return KEEP.get(node.op_type)


def steps_in_half(node: ir.Node, facts: Facts) -> Verdict:
    """A kernel that goes step by step and rounds each: a scatter that computes, a recurrence that cannot be followed."""
    if node.op_type in RECURRENT and not takes_steps(node, schemas.opset_version(node, facts.model)):
        return Reason.REDUCTION, "its state is rounded at every step, which cannot be emulated in this form"
    reduction = node.attributes.get("reduction")
    return SCATTERS.get((node.op_type, reduction.as_string())) if reduction is not None else None


RULES: tuple[Callable[[ir.Node, Facts], Verdict], ...] = (
    control_flow,
    draws,
    no_half_type,
    pinned,
    no_half_kernel,
    constant_out_of_range,
    counts,
    listed,
    steps_in_half,
    normalization,
)


def _counting_values(nodes: Sequence[ir.Node]) -> frozenset[ir.Value]:
    """Float values computed from integers by arithmetic: casts of integers, Range, and what follows from them alone.

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
    """The primitives between a kept reduction and the division or product that applies it.

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
    """Nodes from the reduction to where its root or quotient is applied; empty when it normalizes nothing."""
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
            if not (scales or (divides and not _is_reciprocal(consumer))):
                frontier.append(consumer)
    return seen if applied else set()


def _is_reciprocal(node: ir.Node) -> bool:
    """1 / x, which a Mul applies later."""
    numerator = node.inputs[0]
    return numerator is not None and numerator.const_value is not None and numerator.const_value.size == 1


def _squares_before(reduction: ir.Node) -> set[ir.Node]:
    """The squaring node that feeds a reduction and the Sub that centres its input."""
    found: set[ir.Node] = set()
    square = reduction.inputs[0].producer() if reduction.inputs and reduction.inputs[0] is not None else None
    if square is not None and square.op_type in ("Mul", "Pow"):
        found.add(square)
        centre = square.inputs[0].producer() if square.inputs[0] is not None else None
        if centre is not None and centre.op_type == "Sub":
            found.add(centre)
    return found
