"""Explain a plan: the precision of every float node, the reason, and the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from demi.calibration.emulation.sensitivity import Sensitivities
from demi.exporter.operators import schemas
from demi.exporter.planning.constraints import Pins, underflows
from demi.exporter.planning.measured_facts import Measured
from demi.exporter.planning.op_list import why_half
from demi.exporter.planning.planner import Assignment
from demi.exporter.planning.repair_state import Repair
from demi.plan import Decision, Precision, PrecisionPlan, Reason, make_plan


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that decided a plan."""

    facts: Measured
    constraints: Pins
    repaired: Repair
    assignment: Assignment
    sensitivities: Sensitivities
    forced: Mapping[str, str]
    """Objections to the nodes that `--force-half` names; an empty text where there are none."""


def explain(story: Story) -> PrecisionPlan:
    """Return the plan with a decision for every node that touches floats, in graph order."""
    nodes = [node for node in story.facts.model.graph.all_nodes() if schemas.touches_float(node)]
    total = sum(story.sensitivities.square(name) for name in story.assignment.half)
    decisions = (_decision(node, story, total) for node in nodes)
    return make_plan(story.facts.fmt.name, decisions, story.facts.masks.names)


def _decision(node: ir.Node, story: Story, total: float) -> Decision:
    name, op_type = node.name or "", node.op_type
    square = story.sensitivities.square(name) if name in story.sensitivities.squares else None
    sensitivity = math.sqrt(square) if square is not None and math.isfinite(square) else None
    if name in story.assignment.half:
        share = square / total if square is not None and total else None
        reason, evidence = why_half(story.forced.get(name))
        return Decision(name, op_type, Precision.HALF, reason, evidence, sensitivity, share)
    reason, evidence = _why_single(node, story, sensitivity)
    return Decision(name, op_type, Precision.SINGLE, reason, evidence, sensitivity)


def _why_single(node: ir.Node, story: Story, sensitivity: float | None) -> tuple[Reason, str]:
    name = node.name or ""
    found = story.constraints.get(name) or story.repaired.pinned.get(name)
    if found and found[0] is Reason.ERROR_BORN and (tiny := underflows(node, story.facts)):
        return tiny
    if found:
        return found
    if name in story.assignment.cheapest and sensitivity:
        return Reason.SENSITIVE, f"rounding its results would use {sensitivity:.2g} of the budget"
    return Reason.CHEAPER, f"casts {_where_cast(node)} would cost more time than half precision saves"


def _where_cast(node: ir.Node) -> str:
    """Describe where the casts are that keep a node single: around it, and at the model's inputs or outputs."""
    reads = any(value is not None and value.is_graph_input() and schemas.is_float(value) for value in node.inputs)
    makes = any(value.is_graph_output() and schemas.is_float(value) for value in node.outputs)
    if not reads and not makes:
        return "around it"
    border = "inputs and outputs" if reads and makes else "inputs" if reads else "outputs"
    return f"around it and at the model's {border}"
