"""Bounds on exponents: what half asks of each node's operands, and the cost of a bound that does not hold.

The bounds are those of `planning.constraints`: a tensor keeps a margin below the largest half, a scalar constant must
not vanish, and what some kernels store inside must fit. A node with a bound that is broken is an island in FP32.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx_ir as ir

from demi.calibration.profile import Range
from demi.exporter.operators.epsilons import UNFELT, least_mean
from demi.exporter.planning.constraints import MARGIN, constrain, margin_of
from demi.exporter.planning.costs import DeviceCosts, Sizes, node_cost
from demi.exporter.planning.measured_facts import Measured, guarded_behind
from demi.exporter.rescaling.equations import Edge, System, is_constant, value_at
from demi.plan import Reason

REPAIRABLE = frozenset(
    {Reason.OVERFLOW, Reason.OVERFLOWING_CONSTANT, Reason.VANISHING_CONSTANT, Reason.GUARDED, Reason.REDUCTION}
)
"""Reasons to be FP32 that another scale can remove; nodes that are FP32 for another reason cost nothing here."""

ORDINARY = 0.9
"""A tensor counts as vanishing when so large a share of its values lies below the smallest normal half."""

FEW = 0.05
"""The share of a tensor's values that may be subnormal in half without a cost."""

ISLAND = 1.0
"""The cost of a node in FP32, besides its share of the model's time."""

WORK = 100.0
"""The cost of all of a model's time that half would save, in ISLANDs."""

MULTIPLIED = 1.0
"""The cost of one more Mul, by that of a node in FP32: it must save more than one of them."""

HEADROOM = 3
"""Binades that a scaled tensor should keep below the margin: samples show what other inputs are like, not how large."""

RAISED = 2
"""Binades that a tensor which fits as it is must keep below the margin when it is scaled up."""


class Bound(NamedTuple):
    """least <= exponent of a variable <= most, unless the node is an island."""

    variable: int
    node: ir.Node
    least: float = -math.inf
    most: float = math.inf
    guards: bool = False
    """True if it keeps a constant from vanishing, for instance one that the node divides by."""

    @property
    def holds(self) -> bool:
        """Return whether it holds for the model as it is."""
        return self.least <= 0 <= self.most


@dataclass(frozen=True, slots=True)
class Mul:
    """The cost of a Mul on an edge."""

    cost: float
    """In ISLANDs; twice as much where the Mul itself is in FP32."""
    ends: tuple[int, int]
    """The variables of what it reads and makes."""
    most: float = math.inf
    """The largest exponent with which both ends fit half, where they do not as they are."""


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
    """Cost of each node that has a bound, as an island."""
    saved_s: float = 1.0
    """Seconds that half would save in all of these nodes."""

    @property
    def broken(self) -> Set[ir.Node]:
        """The nodes that may be islands: those with a bound that the model as it is breaks, or with an epsilon."""
        return {bound.node for bound in self.bounds if bound.guards or not bound.holds}

    @property
    def faint(self) -> Set[ir.Node]:
        """The nodes whose operands vanish in half as they are."""
        return {bound.node for bound in self.ordinary if not bound.holds}

    def by_node(self) -> Mapping[ir.Node, Sequence[Bound]]:
        """Return the bounds of each node; those of the epsilons that it leans on are among them."""
        found: defaultdict[ir.Node, list[Bound]] = defaultdict(list)
        for bound in self.bounds:
            found[bound.node].append(bound)
        return found

    def always(self) -> Mapping[int, tuple[float, float]]:
        """Return the bounds that hold in any case, by variable: nothing that fits as it is may stop to fit."""
        broken = self.broken
        either = broken | self.faint
        held = [(b.variable, b.least, b.most) for b in self.bounds if b.node not in broken]
        held += [(b.variable, b.least, b.most) for b in self.ordinary if b.node not in either]
        found: dict[int, tuple[float, float]] = {}
        for variable, least, most in (*self.hard, *held):
            known = found.get(variable, (-math.inf, math.inf))
            found[variable] = max(known[0], least), min(known[1], most)
        return found


def limits_of(system: System, facts: Measured, device: DeviceCosts, *, floors: bool = False) -> Limits:
    """The bounds of a prepared model's system, from its observed ranges.

    With `floors`, an epsilon that no sample feels may vanish: it becomes half's smallest number (`operators.epsilons`).
    """
    found, normal = Limits(), _Normal(facts)
    nodes = _possible_halves(facts)
    for node in nodes:
        operands = list(_half_operands(node, system, facts))
        found.bounds += (*_bounds(node, operands, facts, floors=floors), *_inside(node, system, facts))
        for variable, value, seen in operands:
            if (constant := is_constant(value)) and _is_scalar(value):
                continue
            least, ordinary = normal.exponents(value, seen)
            if math.isfinite(ordinary):
                found.ordinary.append(Bound(variable, node, ordinary))
            made_here = value.producer() is node
            if math.isfinite(least) and (made_here or constant):
                found.subnormal.append((variable, int(least)))
            if made_here and math.isfinite(most := _most(seen.largest * margin_of(node), facts)):
                found.crowded.append((variable, int(most) - HEADROOM))
    for (node, position), variable in system.constants.items():
        read = node.inputs[position]
        if read is not None and (held := facts.profile.get(read.name)) is not None:
            found.hard.append((variable, *_held_in_fp32(held)))
    for value, variable in system.tensors.items():
        if facts.profile.get(value.name) is None:
            found.hard.append((variable, -math.inf, 0.0))
            found.subnormal.append((variable, 0))
    saved = _seconds_saved(nodes, facts, device)
    found.saved_s = sum(saved.values()) or 1.0
    found.costs = {node: ISLAND * (1 + WORK * share / found.saved_s) for node, share in saved.items()}
    return found


def muls_of(
    edges: Iterable[Edge], system: System, limits: Limits, facts: Measured, device: DeviceCosts
) -> dict[Edge, Mul]:
    """Return the cost of a Mul on each of these edges."""
    sizes, found = Sizes(facts.profile), {}
    for edge in edges:
        value = value_at(edge)
        ends = system.tensors[value], system.edges[edge][0]
        seconds = 4 * sizes.elements(value) / device.bandwidth
        seen = facts.profile.get(value.name)
        most = _most(seen.largest * margin_of(value.producer()), facts) if seen and seen.largest else math.inf
        cost = ISLAND * MULTIPLIED * (1 + WORK * seconds / limits.saved_s)
        found[edge] = Mul(cost, ends, most if most < 0 else math.inf)
    return found


def _possible_halves(facts: Measured) -> list[ir.Node]:
    """The nodes that are half where their ranges allow it."""
    single = {name for name, (reason, _) in constrain(facts).items() if reason not in REPAIRABLE}
    nodes = facts.model.graph.all_nodes()
    return [node for node in nodes if facts.operands.get(node.name or "") and node.name not in single]


class _Normal:
    """The exponents with which few of a tensor's values are subnormal. Owns those it has computed."""

    def __init__(self, facts: Measured) -> None:
        self._smallest = math.log2(facts.fmt.smallest_normal)
        self._known: dict[ir.Value, tuple[float, float]] = {}

    def exponents(self, value: ir.Value, seen: Range) -> tuple[float, float]:
        """The smallest exponents with which at most `FEW` and at most `ORDINARY` of the values are subnormal."""
        if value not in self._known:
            few, ordinary = (self._least(each) for each in seen.quantiles((FEW, ORDINARY)))
            self._known[value] = few, ordinary
        return self._known[value]

    def _least(self, magnitude: float) -> float:
        return math.ceil(self._smallest - math.log2(magnitude)) if magnitude else -math.inf


def _seconds_saved(nodes: Sequence[ir.Node], facts: Measured, device: DeviceCosts) -> dict[ir.Node, float]:
    sizes = Sizes(facts.profile)
    costs = {node: node_cost(node, facts.operands[node.name or ""], sizes, device) for node in nodes}
    return {node: max(cost.single_s - cost.half_s, 0.0) for node, cost in costs.items()}


def _bounds(node: ir.Node, operands: Iterable[_Operand], facts: Measured, *, floors: bool) -> Iterator[Bound]:
    """The bounds of a node's operands."""
    for variable, value, seen in operands:
        constant = value.const_value if is_constant(value) else None
        margin = 1.0 if constant is not None else margin_of(value.producer())
        yield Bound(variable, node, most=_most(seen.largest * margin, facts, 0 if constant is not None else RAISED))
        if constant is not None and constant.size == 1:
            least = math.floor(math.log2(facts.fmt.smallest_subnormal / 2 / seen.largest)) + 1.0
            if floors and (mean := least_mean(node, value, facts.profile)) >= UNFELT * seen.largest:
                least = min(least, math.ceil(math.log2(UNFELT * facts.fmt.smallest_subnormal / mean)))
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
    """Yield the bounds of numbers that a reduction's kernel stores in half before its result: a sum, or squares."""
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
