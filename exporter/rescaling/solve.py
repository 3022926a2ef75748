"""The integer program: which powers of two let the most of a model fit half, and change the least.

In two steps, each solved by HiGHS (scipy.optimize.milp). First the islands: the cheapest set of nodes in FP32, with the
cost of each Mul that is added. Then, with those islands, the fewest subnormal values, and after them the fewest changed
constants and the smallest exponents.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from demi.exporter.rescaling.classes import Classes, classes_of
from demi.exporter.rescaling.equations import ZERO, Edge, System
from demi.exporter.rescaling.integer_program import Program
from demi.exporter.rescaling.limits import Bound, Limits, Mul

LARGEST = 30
"""The largest exponent: half spans 40 binades, and FP32 keeps 86 more on either side."""

LEAST_FACTOR, MOST_FACTOR = -24, 15
"""The exponents of powers of two that half has: a Mul by another one is in FP32, which is rare, counted (`fit`) and not priced."""

SECONDS = 20.0
"""The longest a step may take; what it has found by then is used. Steps take tenths of a second; a busy machine, more."""

VANISHING = 0.2
"""Cost of a node whose operands vanish, relative to one that is an island for certain: half may do."""

SLACK = 1e-6
"""Rounding error allowed in a sum of costs."""

CHANGED = 1e-2
"""The cost of a step of a constant's exponent, in subnormal tensors by one binade: most constants stay as they are."""

SIZE = 1e-3
"""The cost of a step of any exponent, likewise: of equally good solutions, the smallest exponents."""


@dataclass(frozen=True, slots=True)
class Solution:
    """An exponent for every variable, the nodes that stay FP32 for their range, and what they cost."""

    exponents: tuple[int, ...]
    islands: tuple[ir.Node, ...]
    cost: float


@dataclass(frozen=True, slots=True)
class Islands:
    """The first step, solved."""

    step: _FirstStep
    found: Sequence[float]
    """The values of its columns."""
    is_best: bool
    """True if no other solution costs much less."""

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The islands."""
        return tuple(node for node, column in self.step.switches.items() if self.found[column] > 0.5)

    @property
    def cost(self) -> float:
        """Return the cost of the islands and of the Muls."""
        return self.step.program.cost_of(self.found)


def guess_islands(system: System, limits: Limits, seconds: float = SECONDS) -> Islands | None:
    """The first step without Muls, solved well and fast; mostly not proven to be the best. None where there is no solution."""
    first = _FirstStep(system, limits, {})
    found, is_best = first.program.guess(seconds)
    return first.solved(found, is_best=is_best)


def least_islands(
    system: System, limits: Limits, muls: Mapping[Edge, Mul], at_most: float, seconds: float = SECONDS
) -> Islands | None:
    """The first step: the cheapest islands where these Muls may be added; None where no solution was found in time.

    A known solution that costs `at_most`, or any bound on what is of use, saves half of the time.
    """
    first = _FirstStep(system, limits, muls)
    first.program.row(dict(enumerate(first.program.costs)), 0.0, at_most * (1 + SLACK) + SLACK)
    return first.solved(first.program.solve(seconds), is_best=True)


def solve(system: System, limits: Limits, first: Islands, seconds: float = SECONDS) -> Solution:
    """The second step: the best exponents with the islands of the first."""
    program, classes, columns, cost = first.step.program, first.step.classes, first.step.columns, first.cost
    program.hold(first.found)
    _add_losses(program, system, limits, classes, columns)
    found = program.solve(seconds) or first.found
    exponents = tuple(round(found[columns[head]]) if head in columns else 0 for head in classes.of)
    return Solution(exponents, first.nodes, cost)


def fits_alone(bounds: Iterable[Bound], classes: Classes) -> bool:
    """Return whether a node's bounds contradict each other in no class."""
    return not any(least > most for least, most in _by_class(bounds, classes).values())


Asked = dict[int, tuple[float, float]]
"""The least and the most exponent that a node asks of each class."""


class _FirstStep:
    """The first step's program. Owns its columns: those of the exponents by class, and those of islands by node.

    A node may be an island where the model as it is breaks one of its bounds, or where an epsilon could vanish: nothing
    else that fits may stop to fit. A tensor that is subnormal for the most part as it is costs less.
    """

    def __init__(self, system: System, limits: Limits, muls: Mapping[Edge, Mul]) -> None:
        self.program, self.classes = Program(), classes_of(system, muls)
        heads = sorted(set(self.classes.of) - {ZERO})
        self.columns = {head: self.program.column(0.0, -LARGEST, LARGEST, whole=True) for head in heads}
        for equation in self.classes.equations:
            terms = {self.columns[head]: float(coefficient) for head, coefficient in equation.items()}
            self.program.row(terms, 0.0, 0.0)
        for variable, (least, most) in limits.always().items():
            if (column := self.columns.get(self.classes.of[variable])) is not None:
                self.program.limit(column, least, most)
        self.program.narrow()
        self.switches = _add_islands(self.program, limits, self.classes, self.columns)
        _add_faint(self.program, limits, self.classes, self.columns, self.switches)
        _add_muls(self.program, system, self.classes, self.columns, muls)

    def solved(self, found: Sequence[float] | None, *, is_best: bool) -> Islands | None:
        """The values of the columns as a result."""
        return None if found is None else Islands(self, found, is_best)


def _add_islands(program: Program, limits: Limits, classes: Classes, columns: Mapping[int, int]) -> dict[ir.Node, int]:
    """A switch for each node that may be an island, and its bounds unless that is on; nodes that ask for the same share one."""
    alike: dict[frozenset[tuple[int, tuple[float, float]]], int] = {}
    switches: dict[ir.Node, int] = {}
    broken = limits.broken
    for node, bounds in limits.by_node().items():
        if node not in broken:
            continue
        asked = _by_class(bounds, classes)
        key = frozenset(asked.items())
        if key in alike:
            program.costs[alike[key]] += limits.costs[node]
        else:
            alike[key] = program.switch(limits.costs[node])
            _hold_unless(program, columns, asked, [alike[key]])
        switches[node] = alike[key]
    return switches


def _add_faint(
    program: Program, limits: Limits, classes: Classes, columns: Mapping[int, int], islands: Mapping[ir.Node, int]
) -> None:
    """A switch for each node whose operands vanish as they are, and rows that keep most of the others normal in half."""
    faint = limits.faint
    switches = {node: program.switch(VANISHING * cost) for node, cost in limits.costs.items() if node in faint}
    bounds: defaultdict[ir.Node, list[Bound]] = defaultdict(list)
    for bound in limits.ordinary:
        if bound.node in switches or bound.node in islands:
            bounds[bound.node].append(bound)
    for node, those in bounds.items():
        unless = [each[node] for each in (islands, switches) if node in each]
        _hold_unless(program, columns, _by_class(those, classes), unless)


def _by_class(bounds: Iterable[Bound], classes: Classes) -> Asked:
    """The tightest of some bounds on each class."""
    found: Asked = {}
    for bound in bounds:
        head = classes.of[bound.variable]
        least, most = found.get(head, (-math.inf, math.inf))
        found[head] = (max(least, bound.least), min(most, bound.most))
    return found


def _hold_unless(program: Program, columns: Mapping[int, int], asked: Asked, unless: Sequence[int]) -> None:
    """Hold classes to a node's bounds, unless one of these columns is 1."""
    rows = []
    for head, (least, most) in asked.items():
        column = columns.get(head)
        low, high = (program.low[column], program.high[column]) if column is not None else (0.0, 0.0)
        if max(least, low) > min(most, high):  # they cannot be held
            program.row(dict.fromkeys(unless, 1.0), 1.0, math.inf)
            return
        if column is not None and least > low:
            rows.append(({column: 1.0, **dict.fromkeys(unless, least - low)}, least, math.inf))
        if column is not None and most < high:
            rows.append(({column: 1.0, **dict.fromkeys(unless, most - high)}, -math.inf, most))
    for row in rows:
        program.row(*row)


def _add_muls(
    program: Program, system: System, classes: Classes, columns: Mapping[int, int], muls: Mapping[Edge, Mul]
) -> None:
    """The price of each Mul that has a factor other than 1, and again that of one in FP32."""
    for edge, mul in muls.items():
        if (column := columns.get(classes.of[system.edges[edge][1]])) is None:
            continue
        used = program.switch(mul.cost)
        program.row({column: 1.0, used: -program.high[column]}, -math.inf, 0.0)
        program.row({column: 1.0, used: -program.low[column]}, 0.0, math.inf)
        if mul.most == math.inf:
            continue
        single = program.switch(mul.cost)
        much = LARGEST - mul.most  # beyond it, and used: the Mul is in FP32, too
        for end in (columns.get(classes.of[variable]) for variable in mul.ends):
            terms = {used: much, single: -much} | ({end: 1.0} if end is not None else {})
            program.row(terms, -math.inf, mul.most + much)


def _add_losses(program: Program, system: System, limits: Limits, classes: Classes, columns: Mapping[int, int]) -> None:
    """The second step's costs: subnormal values, then changed constants, then the size of exponents."""
    for sign, limit in ((1, limits.subnormal), (-1, limits.crowded)):
        counts = Counter((classes.of[variable], sign * bound) for variable, bound in limit)
        for (head, bound), count in counts.items():
            if head in columns and bound > -LARGEST:
                short = program.column(float(count), 0.0, math.inf)
                program.row({columns[head]: float(sign), short: 1.0}, float(bound), math.inf)
    changed = Counter(classes.of[variable] for variable in (*system.constants.values(), *system.attributes.values()))
    for head, column in columns.items():
        size = program.column(SIZE + CHANGED * changed[head], 0.0, math.inf)
        program.row({column: 1.0, size: 1.0}, 0.0, math.inf)
        program.row({column: -1.0, size: 1.0}, 0.0, math.inf)
