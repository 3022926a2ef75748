"""The integer program: which powers of two let the most of a model fit half, and change the least.

In two steps, each solved by HiGHS (scipy.optimize.milp). First the islands: the cheapest set of nodes in FP32, with the
cost of each Mul that is added. Then, with those islands, the fewest subnormal values, and after them the fewest changed
constants and the smallest exponents.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from demi.exporter.rescaling.classes import Classes, classes_of
from demi.exporter.rescaling.equations import ZERO, System
from demi.exporter.rescaling.integer_program import Program
from demi.exporter.rescaling.limits import VANISHING, Bound, Limits

LARGEST = 30
"""The largest exponent: half spans 40 binades, and FP32 keeps 86 more on either side."""

SECONDS = 5.0
"""The longest a step may take; what it has found by then is used."""

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


def solve(system: System, limits: Limits, seconds: float = SECONDS) -> Solution | None:
    """The best exponents; None where no solution was found in time."""
    classes = classes_of(system.count, system.equations)
    first, columns, islands = _program(system, limits, classes)
    found = first.solve(seconds)
    if found is None:
        return None
    cost = math.fsum(price * value for price, value in zip(first.costs, found, strict=True))
    first.hold(found)
    _add_losses(first, system, limits, classes, columns)
    found = first.solve(seconds) or found
    exponents = tuple(round(found[columns[head]]) if head in columns else 0 for head in classes.of)
    single = tuple(node for node, column in islands.items() if found[column] > 0.5)
    return Solution(exponents, single, cost)


def cost_as_is(system: System, limits: Limits) -> tuple[float, tuple[ir.Node, ...]]:
    """What the model costs with every exponent 0, and the nodes that are FP32 for their range then."""
    single = tuple(dict.fromkeys(bound.node for bound in limits.bounds if not bound.holds))
    faint = dict.fromkeys(bound.node for bound in limits.ordinary if not bound.holds)
    cost = sum(limits.costs[node] for node in single) + VANISHING * sum(limits.costs[node] for node in faint)
    return cost, single


def _program(system: System, limits: Limits, classes: Classes) -> tuple[Program, dict[int, int], dict[ir.Node, int]]:
    """The first step: its columns, those of the exponents by class, and those of islands by node."""
    program = Program()
    heads = sorted(set(classes.of) - {ZERO})
    columns = {head: program.column(0.0, -LARGEST, LARGEST, whole=True) for head in heads}
    for equation in classes.equations:
        program.row({columns[head]: coefficient for head, coefficient in equation.items()}, 0.0, 0.0)
    for variable, least, most in limits.hard:
        if (column := columns.get(classes.of[variable])) is not None:
            program.low[column] = max(program.low[column], least)
            program.high[column] = min(program.high[column], most)
    islands = _add_bounds(program, limits, classes, columns)
    for factor in (factor for _, factor in system.edges.values()):
        if (column := columns.get(classes.of[factor])) is not None:
            used = program.switch(limits.edges[factor])
            program.row({column: 1.0, used: -2.0 * LARGEST}, -math.inf, 0.0)
            program.row({column: 1.0, used: 2.0 * LARGEST}, 0.0, math.inf)
            if factor in limits.ends:
                ends, most = limits.ends[factor]
                single = program.switch(limits.edges[factor])
                much = LARGEST - most  # beyond it, and used: the Mul is in FP32, too
                for end in (columns.get(classes.of[variable]) for variable in ends):
                    terms = {used: much, single: -much} | ({end: 1.0} if end is not None else {})
                    program.row(terms, -math.inf, most + much)
    return program, columns, islands


def _add_bounds(program: Program, limits: Limits, classes: Classes, columns: Mapping[int, int]) -> dict[ir.Node, int]:
    """Every bound as a row; returns the islands, by node.

    A node may be an island where the model as it is breaks one of its bounds, or where an epsilon could vanish: nothing
    else that fits may stop to fit. A tensor that is subnormal for the most part as it is costs less.
    """
    broken = {bound.node for bound in limits.bounds if bound.guards or not bound.holds}
    islands = {node: program.switch(limits.costs[node]) for node in limits.costs if node in broken}
    faint = {
        node: program.switch(VANISHING * limits.costs[node])
        for node in dict.fromkeys(bound.node for bound in limits.ordinary if not bound.holds)
    }
    asked = [(key, bounds, [islands]) for key, bounds in _tightest(limits.bounds, classes).items()]
    asked += [(key, bounds, [islands, faint]) for key, bounds in _tightest(limits.ordinary, classes).items()]
    rows = [
        (columns.get(head), bounds, [each[node] for each in by if node in each]) for (node, head), bounds, by in asked
    ]
    for column, bounds, unless in sorted(rows, key=lambda row: bool(row[2])):  # what holds in any case goes first
        _bound(program, column, bounds, unless)
    return islands


def _tightest(bounds: Iterable[Bound], classes: Classes) -> dict[tuple[ir.Node, int], tuple[float, float]]:
    """The bounds on each class that each node asks for."""
    found: dict[tuple[ir.Node, int], tuple[float, float]] = {}
    for bound in bounds:
        key = (bound.node, classes.of[bound.variable])
        least, most = found.get(key, (-math.inf, math.inf))
        found[key] = (max(least, bound.least), min(most, bound.most))
    return found


def _bound(program: Program, column: int | None, bounds: tuple[float, float], unless: Sequence[int]) -> None:
    """Hold a class to a node's bounds, unless one of these columns is 1."""
    least, most = bounds
    if column is None:  # pinned: they hold as it is, or one of the columns is 1
        if not least <= 0 <= most:
            program.row(dict.fromkeys(unless, 1.0), 1.0, math.inf)
    elif not unless:
        program.low[column] = max(program.low[column], least)
        program.high[column] = min(program.high[column], most)
    else:
        below, above = least - program.low[column], program.high[column] - most
        if below > 0:
            program.row({column: 1.0, **dict.fromkeys(unless, below)}, least, math.inf)
        if above > 0:
            program.row({column: 1.0, **dict.fromkeys(unless, -above)}, -math.inf, most)


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
