"""Hard constraints: which nodes must stay single, from the schemas, the constants and the observed ranges.

Rules are as in `op_rules`. What they do not cover, the emulator finds (`demi.exporter.planning.repair`).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from demi.calibration.profile import Range
from demi.errors import ConversionError
from demi.exporter.operators import schemas
from demi.exporter.operators.tables import ALWAYS_SINGLE
from demi.exporter.planning.measured_facts import Measured
from demi.exporter.planning.node_patterns import forced_nodes
from demi.exporter.planning.op_rules import (
    TYPE_RULES,
    Rule,
    Verdict,
    constant_out_of_range,
    first_verdict,
    holds_counts,
    no_half_kernel,
    pinned,
    steps_in_half,
)
from demi.plan import Reason

Pins = dict[str, tuple[Reason, str]]
"""Nodes that must stay single, by name, with reason and evidence."""

MARGIN = 1.5
"""Factor by which a tensor must stay below the largest half on the samples: other inputs may produce larger values."""

AMPLIFYING = {
    "Exp": (16.0, "an exponential: its argument need grow by only 2.8"),
    "Pow": (4.0, "a power: squares grow with the square"),
    "ReduceSumSquare": (4.0, "a sum of squares"),
    "Softplus": (4.0, "an exponential inside"),
    "Div": (4.0, "a quotient: its divisor may come nearer to zero"),
    "Reciprocal": (4.0, "its argument may come nearer to zero"),
}
"""Operators whose results grow faster than their inputs: they get a wider margin."""


ALL_WHOLE = 2.0**24
"""Beyond it every FP32 number is an integer, count or not, and FP32 itself is no longer exact."""

BOUNDED = frozenset({"Sin", "Cos", "Tan", "Tanh", "Sigmoid", "Exp", "Erf"})
"""Operators that map a count to a small number: they need the exact count, but their result is not a count."""


def constrain(facts: Measured, force_half: Sequence[str] = ()) -> Pins:
    """Return the nodes that must stay single, by name, with reason and evidence.

    `force_half` (names, globs, operator types) overrides every rule that is not about types; ConversionError when a
    forced node cannot be half at all.
    """
    found: Pins = {}
    forced = forced_nodes(facts.model, force_half, list(facts.pinned.values()))
    for node in facts.model.graph.all_nodes():
        if not schemas.touches_float(node):
            continue
        name = node.name or ""
        impossible = first_verdict(TYPE_RULES, node, facts)
        if impossible is None and name in forced:
            continue
        if impossible and name in force_half:
            raise ConversionError(f"`{name}` cannot be forced to half: {impossible[1]}", where="--force-half")
        verdict = impossible or first_verdict(VALUE_RULES, node, facts)
        if verdict:
            found[name] = verdict
    return found


def constants(node: ir.Node, facts: Measured) -> Verdict:
    """A constant half cannot hold, unless it is a mask, or an epsilon that no sample feels."""
    return constant_out_of_range(node, facts.fmt, skip=facts.masks.constants | facts.epsilons)


def kernel_accumulates(node: ir.Node, facts: Measured) -> Verdict:
    """Operators whose kernels keep sums in half that need FP32."""
    return ALWAYS_SINGLE.get(node.op_type)


def overflows(node: ir.Node, facts: Measured) -> Verdict:
    """A tensor the node reads or makes in half comes within the margin of the largest half."""
    for value, maker in _half_values(node, facts):
        found = facts.profile.get(value.name)
        margin = 1.0 if value.const_value is not None else margin_of(maker)
        if found is not None and found.largest * margin > facts.fmt.max:
            return Reason.OVERFLOW, f"max {found.largest:,.6g} on `{value.name}`" + (
                f" (margin {margin:g})" if found.largest <= facts.fmt.max else ""
            )
    return None


def overflows_inside(node: ir.Node, facts: Measured) -> Verdict:
    """A reduction whose kernel keeps a sum or squares in half that the range of its result does not show."""
    if node.op_type not in ("ReduceMean", "ReduceL2") or node.inputs[0] is None:
        return None
    before, after = facts.profile.get(node.inputs[0].name), facts.profile.get(node.outputs[0].name)
    if before is None or after is None or not after.elements_per_set:
        return None
    terms = before.elements_per_set / after.elements_per_set
    inside = after.largest * terms if node.op_type == "ReduceMean" else before.largest**2 * 2
    if max(inside * MARGIN, terms) > facts.fmt.max:
        return Reason.REDUCTION, f"its kernel stores {inside:,.6g} in half (over {terms:,.0f} terms)"
    return None


def scores_overflow(node: ir.Node, facts: Measured) -> Verdict:
    """An attention whose scores, which stay inside the operator, may overflow where a kernel stores them in half."""
    if node.op_type not in ("Attention", "MultiHeadAttention") or len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    if node.domain == "com.microsoft" and node.op_type == "Attention":
        return None  # queries and keys are made inside
    query, key = (facts.profile.get(value.name) if value is not None else None for value in node.inputs[:2])
    size = head_size(node)
    if query is None or key is None or size is None:
        return None
    scale = node.attributes.get_float("scale", 0.0) or size**-0.5
    most = query.largest * key.largest * size * scale
    if most <= facts.fmt.max:
        return None
    return Reason.REDUCTION, f"its scores may reach {most:,.6g} in half, by the largest query and key"


def head_size(node: ir.Node) -> int | None:
    """Return the number of elements in the product of one query and one key; None when it is not fixed."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    size = shape[-1] if shape is not None and len(shape) else None
    if not isinstance(size, int):
        return None
    heads = node.attributes.get_int("q_num_heads", 0) or node.attributes.get_int("num_heads", 1)
    return size // heads if shape is not None and len(shape) == 3 else size


def underflows(node: ir.Node, facts: Measured) -> Verdict:
    """A tensor whose values all lie below the smallest normal half, where half has fewer digits.

    Not one of `VALUE_RULES`: the emulator decides whether the lost digits matter. It explains a node that the emulator
    found.
    """
    for value, _ in _half_values(node, facts):
        found = facts.profile.get(value.name)
        if found is not None and 0 < found.largest < facts.fmt.smallest_normal:
            return Reason.UNDERFLOW, f"max {found.largest:.3g} on `{value.name}`, below {facts.fmt.smallest_normal:.3g}"
    return None


def large_integers(node: ir.Node, facts: Measured) -> Verdict:
    """Integers beyond those that half represents exactly."""
    for value, _ in _half_values(node, facts):
        found = facts.profile.get(value.name)
        if found is None or value.const_value is not None or not found.integer_valued:
            continue
        if facts.fmt.exact_integers < found.largest <= ALL_WHOLE and _holds_distinct_integers(found):
            return (
                Reason.INTEGER_VALUED,
                f"whole numbers up to {found.largest:,.6g} on `{value.name}`; half is exact to {facts.fmt.exact_integers:,}",
            )
    return None


def counts(node: ir.Node, facts: Measured) -> Verdict:
    """Arithmetic on positions, lengths and counts, and the first bounded function of them."""
    return holds_counts((*node.outputs, *(node.inputs if node.op_type in BOUNDED else ())), facts)


def guarded_by_epsilon(node: ir.Node, facts: Measured) -> Verdict:
    """The node divides by a value that only an epsilon keeps from zero, and the epsilon vanishes in half."""
    return (
        (Reason.GUARDED, "an epsilon that vanishes in half keeps it from dividing by zero")
        if node in facts.guarded
        else None
    )


VALUE_RULES: tuple[Rule[Measured], ...] = (
    pinned,
    no_half_kernel,
    kernel_accumulates,
    steps_in_half,
    constants,
    overflows,
    overflows_inside,
    scores_overflow,
    counts,
    large_integers,
    guarded_by_epsilon,
)


def _half_values(node: ir.Node, facts: Measured) -> list[tuple[ir.Value, ir.Node | None]]:
    """Return the operands that would be half, each with its producer; masks need no protection and are left out."""
    operands = facts.operands[node.name or ""]
    inputs = [value for i, value in enumerate(node.inputs) if i in operands.inputs and value is not None]
    outputs = [value for i, value in enumerate(node.outputs) if i in operands.outputs]
    return [(value, value.producer()) for value in (*inputs, *outputs) if value not in facts.masks.reached]


def margin_of(maker: ir.Node | None) -> float:
    """Return the factor by which a node's output must stay below the largest half; None is an input of the graph."""
    if maker is None:
        return MARGIN
    if maker.op_type == "Mul" and len(set(maker.inputs)) == 1:
        return AMPLIFYING["Pow"][0]
    return AMPLIFYING.get(maker.op_type, (MARGIN, ""))[0]


def _holds_distinct_integers(found: Range) -> bool:
    """Return whether its large values are many different integers: powers of two alone are exact in half."""
    return found.high != found.low
