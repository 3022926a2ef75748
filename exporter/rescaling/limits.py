"""What half asks of each node's operands, as bounds on exponents, and what it costs where a bound does not hold.

The bounds are those of `planning.constraints`: a tensor keeps a margin below the largest half, a scalar constant must
not vanish, and what some kernels store inside must fit. A node with a bound that is broken is an island in FP32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from demi.calibration.profile import Range
from demi.exporter.planning.constraints import MARGIN, constrain, margin_of
from demi.exporter.planning.costs import DeviceCosts, Sizes, node_cost
from demi.exporter.planning.measured_facts import Measured, guarded_behind
from demi.exporter.rescaling.classes import Classes
from demi.exporter.rescaling.equations import System, is_constant
from demi.plan import Reason

REPAIRABLE = frozenset(
    {Reason.OVERFLOW, Reason.OVERFLOWING_CONSTANT, Reason.VANISHING_CONSTANT, Reason.GUARDED, Reason.REDUCTION}
)
"""Why a node may be FP32 that another scale can change; nodes that are FP32 for another reason cost nothing here."""

ORDINARY = 0.9
"""A tensor counts as vanishing when so large a share of its values lies below the smallest normal half."""

FEW = 0.05
"""The share of a tensor's values that may be subnormal in half without a cost."""

ISLAND = 1.0
"""The cost of a node in FP32, besides its share of the model's time."""

WORK = 100.0
"""The cost of all of a model's time that half would save, in ISLANDs."""

VANISHING = 0.2
"""What a node costs whose operands vanish, by one that is an island for certain: half may do."""

MULTIPLIED = 1.0
"""The cost of one more Mul, by that of a node in FP32: it must save more than one of them."""

HEADROOM = 3
"""Binades that a scaled tensor should keep below the margin: samples show what other inputs are like, not how large."""

RAISED = 2
"""Binades that a tensor which fits as it is must keep below the margin when it is scaled up."""


@dataclass(frozen=True, slots=True)
class Bound:
    """least <= exponent of a variable <= most, unless the node is an island."""

    variable: int
    node: ir.Node
    least: float = -math.inf
    most: float = math.inf
    guards: bool = False
    """Whether it keeps a constant from vanishing that the node divides by, say."""

    @property
    def holds(self) -> bool:
        """Whether it holds for the model as it is."""
        return self.least <= 0 <= self.most


@dataclass(slots=True)
class Limits:
    """All bounds, and what breaking them costs."""

    bounds: list[Bound] = field(default_factory=list)
    hard: list[tuple[int, float, float]] = field(default_factory=list)
    """Variable, least and most, of constants that FP32 itself must hold, and of tensors whose range nobody saw."""
    subnormal: list[tuple[int, int]] = field(default_factory=list)
    """Variable, and the exponent below which more than `FEW` of a tensor's values are subnormal."""
    crowded: list[tuple[int, int]] = field(default_factory=list)
    """Variable, and the exponent above which a tensor keeps less than `HEADROOM`."""
    ordinary: list[Bound] = field(default_factory=list)
    """Bounds that keep most of a tensor's values normal: where one does not hold, half may do nevertheless."""
    costs: dict[ir.Node, float] = field(default_factory=dict)
    """What each node that has a bound costs as an island."""
    edges: dict[int, float] = field(default_factory=dict)
    """What a Mul costs, by the variable of its factor."""
    ends: dict[int, tuple[tuple[int, int], float]] = field(default_factory=dict)
    """The variables of what a Mul reads and makes, and up to which exponent both fit, where they do not as they are."""


class Demands:
    """What half demands of the nodes of one model, looked up once for every system of equations that is tried.

    Owns what it has computed of the ranges.
    """

    def __init__(self, facts: Measured, device: DeviceCosts) -> None:
        self.facts, self.device = facts, device
        single = {name for name, (reason, _) in constrain(facts).items() if reason not in REPAIRABLE}
        nodes = facts.model.graph.all_nodes()
        self.nodes = [node for node in nodes if facts.operands.get(node.name or "") and node.name not in single]
        self._normal: dict[tuple[str, float], float] = {}

    def normal(self, value: ir.Value, seen: Range, share: float) -> float:
        """The smallest exponent with which no more than `share` of a tensor's values are subnormal in half."""
        key = (value.name or "", share)
        if key not in self._normal:
            magnitude = seen.quantile(share)
            least = math.ceil(math.log2(self.facts.fmt.smallest_normal / magnitude)) if magnitude else -math.inf
            self._normal[key] = least
        return self._normal[key]


def limits_of(system: System, demands: Demands) -> Limits:
    """The bounds of a prepared model's system, from its observed ranges."""
    found, facts = Limits(), demands.facts
    for node in demands.nodes:
        operands = list(_half_operands(node, system, facts))
        found.bounds += (*_bounds(node, operands, facts), *_inside(node, system, facts))
        for variable, value, seen in operands:
            if is_constant(value) and _is_scalar(value):
                continue
            found.ordinary.append(Bound(variable, node, demands.normal(value, seen, ORDINARY)))
            least = demands.normal(value, seen, FEW)
            if math.isfinite(least) and (value.producer() is node or is_constant(value)):
                found.subnormal.append((variable, int(least)))
            most = _most(seen.largest * margin_of(node), facts)
            if math.isfinite(most) and value.producer() is node:
                found.crowded.append((variable, int(most) - HEADROOM))
    for (node, position), variable in system.constants.items():
        read = node.inputs[position]
        if read is not None and (held := facts.profile.get(read.name)) is not None:
            found.hard.append((variable, *_held_in_fp32(held)))
    for value, variable in system.tensors.items():
        if facts.profile.get(value.name) is None:
            found.hard.append((variable, -math.inf, 0.0))
            found.subnormal.append((variable, 0))
    _add_costs(found, demands.nodes, system, facts, demands.device)
    return found


def fits_alone(node: ir.Node, system: System, classes: Classes, demands: Demands) -> bool:
    """Whether a node's own bounds, and those of the epsilons that it leans on, contradict each other in no class."""
    bounds: dict[int, list[Bound]] = {}
    for each in (node, *_ahead(node)):
        operands = list(_half_operands(each, system, demands.facts))
        for bound in (*_bounds(each, operands, demands.facts), *_inside(each, system, demands.facts)):
            if bound.node is node:
                bounds.setdefault(classes.of[bound.variable], []).append(bound)
    return all(max(b.least for b in those) <= min(b.most for b in those) for those in bounds.values())


def _ahead(node: ir.Node) -> list[ir.Node]:
    """The nodes that make what a node reads, and those before them: where its epsilon is added."""
    makers = [value.producer() for value in node.inputs if value is not None]
    before = [value.producer() for maker in makers if maker is not None for value in maker.inputs if value is not None]
    return [each for each in dict.fromkeys((*makers, *before)) if each is not None]


def _add_costs(found: Limits, nodes: Sequence[ir.Node], system: System, facts: Measured, device: DeviceCosts) -> None:
    sizes = Sizes(facts.profile)
    saved = {}
    for node in nodes:
        cost = node_cost(node, facts.operands[node.name or ""], sizes, device)
        saved[node] = max(cost.single_s - cost.half_s, 0.0)
    whole = sum(saved.values()) or 1.0
    found.costs = {node: ISLAND * (1 + WORK * share / whole) for node, share in saved.items()}
    for (node, position), (made, factor) in system.edges.items():
        value = node.inputs[position]
        assert value is not None
        seconds = 4 * sizes.elements(value) / device.bandwidth
        found.edges[factor] = ISLAND * MULTIPLIED * (1 + WORK * seconds / whole)
        seen = facts.profile.get(value.name)
        if seen is not None and seen.largest and (most := _most(seen.largest * margin_of(value.producer()), facts)) < 0:
            found.ends[factor] = (system.tensors[value], made), most


def _bounds(node: ir.Node, operands: Iterable[_Operand], facts: Measured) -> Iterator[Bound]:
    """The bounds of a node's operands."""
    for variable, value, seen in operands:
        constant = value.const_value if is_constant(value) else None
        margin = 1.0 if constant is not None else margin_of(value.producer())
        yield Bound(variable, node, most=_most(seen.largest * margin, facts, 0 if constant is not None else RAISED))
        if constant is not None and constant.size == 1:
            least = math.floor(math.log2(facts.fmt.smallest_subnormal / 2 / seen.largest)) + 1.0
            yield from (Bound(variable, each, least, guards=True) for each in (node, *guarded_behind([node])))


_Operand = tuple[int, ir.Value, Range]
"""An operand that would be half: its variable, the value, and its range."""


def _half_operands(node: ir.Node, system: System, facts: Measured) -> Iterator[_Operand]:
    """The operands that would be half and hold something, each with its variable and its range."""
    operands = facts.operands.get(node.name or "")
    if operands is None:  # integers, shapes and what lies ahead of the nodes that could be half
        return
    read = [(system.read(node, i), node.inputs[i]) for i in sorted(operands.inputs)]
    made = [(system.tensors.get(node.outputs[i]), node.outputs[i]) for i in sorted(operands.outputs)]
    for variable, value in (*read, *made):
        if variable is None or value is None or value in facts.masks.reached or value in facts.masks.constants:
            continue
        seen = facts.profile.get(value.name)
        if seen is not None and seen.largest > 0:
            yield variable, value, seen


def _inside(node: ir.Node, system: System, facts: Measured) -> Iterator[Bound]:
    """What a reduction's kernel stores in half before its result: a sum, or squares."""
    if node.op_type not in ("ReduceMean", "ReduceL2") or node.inputs[0] is None:
        return
    variable = system.read(node, 0)
    before, after = facts.profile.get(node.inputs[0].name), facts.profile.get(node.outputs[0].name)
    if variable is None or before is None or after is None or not after.elements_per_set or not before.largest:
        return
    if node.op_type == "ReduceMean":
        terms = before.elements_per_set / after.elements_per_set
        if after.largest:
            yield Bound(variable, node, most=_most(after.largest * terms * MARGIN, facts))
    else:
        yield Bound(variable, node, most=_most(before.largest**2 * 2 * MARGIN, facts) // 2)


def _most(largest: float, facts: Measured, raised: int = 0) -> float:
    """The largest exponent with which a number fits half; `raised` binades below it, where that is above 0."""
    if largest == math.inf:
        return -math.inf
    most = math.floor(math.log2(facts.fmt.max / largest))
    return max(most - raised, min(most, 0))


def _is_scalar(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size == 1


def _held_in_fp32(seen: Range) -> tuple[float, float]:
    """The exponents with which FP32 holds a constant's numbers as they are: none infinite, none subnormal."""
    if not seen.largest or seen.smallest < 2.0**-126:
        return 0.0, 0.0
    return -126.0 - math.floor(math.log2(seen.smallest)), 127.0 - math.floor(math.log2(seen.largest))
