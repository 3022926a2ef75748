"""Explain a plan: the precision of every float node, the reason, and the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from demi.calibration.emulation.sensitivity import Sensitivities
from demi.calibration.emulation.widen import is_exact
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
    shares = error_shares(nodes, story.assignment.half, story.sensitivities)
    decisions = (_decision(node, story, shares) for node in nodes)
    return make_plan(story.facts.fmt.name, decisions, story.facts.masks.names, epsilons=story.facts.epsilon_names)


def error_shares(nodes: Sequence[ir.Node], half: Set[str], sensitivities: Sensitivities) -> dict[str, float]:
    """Return the share of the predicted squared error of each half node.

    A node that rounds nothing has none: of a group that was measured together, the others share its part.
    """
    measured = [node for node in nodes if node.name in half and node.name in sensitivities.squares]
    groups: dict[int | str, list[ir.Node]] = {}
    for node in measured:
        name = node.name or ""
        groups.setdefault(sensitivities.groups.get(name, name), []).append(node)
    squares: dict[str, float] = {}
    for members in groups.values():
        rounding = [node for node in members if rounds(node, half)]
        together = sum(sensitivities.square(node.name or "") for node in members) if rounding else 0.0
        squares |= {node.name or "": 0.0 for node in members}
        squares |= {node.name or "": together / len(rounding) for node in rounding}
    total = sum(squares.values())
    return {name: square / total for name, square in squares.items()} if total else {}


def rounds(node: ir.Node, half: Set[str]) -> bool:
    """Return whether a half node rounds anything: one that only moves values does so if it reads FP32."""
    if not is_exact(node):
        return True
    read = [
        value for value in node.inputs if value is not None and schemas.is_float(value) and not value.is_initializer()
    ]
    producers = [value.producer() for value in read]
    return any(producer is None or producer.name not in half for producer in producers)


def _decision(node: ir.Node, story: Story, shares: Mapping[str, float]) -> Decision:
    name, op_type = node.name or "", node.op_type
    group = story.sensitivities.groups.get(name, 0)
    square = story.sensitivities.square(name) if name in story.sensitivities.squares else None
    sensitivity = math.sqrt(square) if square is not None and math.isfinite(square) else None
    if name in story.assignment.half:
        reason, evidence = why_half(story.forced.get(name))
        return Decision(name, op_type, Precision.HALF, reason, evidence, sensitivity, shares.get(name), group)
    reason, evidence = _why_single(node, story, sensitivity)
    return Decision(name, op_type, Precision.SINGLE, reason, evidence, sensitivity, group=group)


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
