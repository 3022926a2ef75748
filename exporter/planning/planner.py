"""The planner: the cheapest plan whose error is within the budget.

The cut prices each half node's share of the squared error with lambda; lambda is found by bisection on the predicted
error, which needs no model run. `demi.exporter.planning.verified_plan` verifies the plan with the emulator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import onnx_ir as ir

from demi.calibration.emulation.sensitivity import Sensitivities
from demi.calibration.emulation.switches import input_source
from demi.calibration.emulation.widen import is_exact
from demi.exporter.operators import schemas
from demi.exporter.operators.schemas import Operands
from demi.exporter.planning.costs import DeviceCosts, NodeCost, Sizes, crossing_costs, node_cost
from demi.exporter.planning.min_cut import Crossing, CutProblem, solve

BISECTIONS = 24

HIGHEST_PRICE = 1e12
"""Highest price that is tried, in seconds for a whole budget of squared error."""

FILL_RUNS = 64
"""Maximum number of runs that the nodes between two cuts are divided into."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The planner's choice of half nodes, with its predicted errors and costs."""

    half: frozenset[str]
    predicted: tuple[float, ...]
    """Predicted relative error of each output, as a share of its limit."""
    cheapest: frozenset[str]
    """The half nodes of the cheapest assignment, whatever its error."""
    cast_s: float
    costs: Mapping[str, NodeCost]
    forgone: float = 0.0
    """Share of the cheapest assignment's gain over all-FP32 that this one forgoes."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """The cheapest assignment at one price of the error, and the share of the budget that it is predicted to use."""

    half: list[bool]
    load: float


class Planner:
    """The cut problem of one model: built once; `assign` solves it for any target."""

    def __init__(
        self,
        model: ir.Model,
        operands: Mapping[str, Operands],
        sizes: Sizes,
        device: DeviceCosts,
        sensitivities: Sensitivities,
        pinned: AbstractSet[str],
        forced: AbstractSet[str] = frozenset(),
        half_io: bool = False,
        half_names: AbstractSet[str] = frozenset(),
    ) -> None:
        self._nodes = [node for node in model.graph.all_nodes() if operands.get(node.name or "")]
        self._names = [node.name or "" for node in self._nodes]
        self._index = {node: i for i, node in enumerate(self._nodes)}
        self._sensitivities = sensitivities
        self._outputs = len(model.graph.outputs)
        self.costs = {
            name: node_cost(node, operands[name], sizes, device)
            for name, node in zip(self._names, self._nodes, strict=True)
        }
        self._pinned = frozenset(i for i, name in enumerate(self._names) if name in pinned)
        self._forced = frozenset(i for i, name in enumerate(self._names) if name in forced)
        self._operands = operands
        border = {*model.graph.inputs, *(value for value in model.graph.outputs if not value.uses())}
        self._paid_border = frozenset(value for value in border if not half_io and value.name not in half_names)
        self._tensors = self._find_tensors(model, sizes, device)
        self._cuts: dict[float, _Cut] = {}
        """The cuts so far, by price: the search for another target starts between two of them."""

    def use_sensitivities(self, sensitivities: Sensitivities) -> None:
        """Use these sensitivities from now on."""
        self._sensitivities = sensitivities
        self._cuts.clear()

    def pin(self, names: AbstractSet[str]) -> bool:
        """Keep these nodes single from now on, except those forced to half; return True if any is newly pinned."""
        before = len(self._pinned)
        self._pinned |= {i for i, name in enumerate(self._names) if name in names} - self._forced
        self._cuts.clear()
        return len(self._pinned) > before

    def assign(self, target: float) -> Assignment:
        """Return the cheapest assignment predicted to use at most `target` of the budget.

        A price on the squared error reaches only assignments on the convex hull of (cost, error). Between the last one
        beyond the target and the first one within it, `_fill` adds nodes that still fit.
        """
        cheapest = self._cut(0.0)
        if cheapest.load <= target:
            return self._describe(cheapest.half, cheapest.half)
        low = max(price for price, cut in self._cuts.items() if cut.load > target)
        known = [price for price, cut in self._cuts.items() if price > low and cut.load <= target]
        high = min(known, default=max(low, sum(cost.single_s for cost in self.costs.values()) or 1.0))
        while self._cut(high).load > target and high < HIGHEST_PRICE:
            low, high = high, high * 64
        for _ in range(BISECTIONS):
            if low > 0 and high / low < 1.02:
                break
            middle = math.sqrt(low * high) if low > 0 else high / 64
            if self._cut(middle).load <= target:
                high = middle
            else:
                low = middle
        return self._describe(self._fill(self._cut(high).half, self._cut(low).half, target), cheapest.half)

    def worth(self, assignment: Assignment) -> dict[str, float]:
        """Return, for each node that is single only because of its error, its share of the possible gain."""
        saved = sum(each.single_s - self.costs[name].half_s for name, each in self.costs.items()) or 1.0
        left = assignment.cheapest - assignment.half
        return {name: (self.costs[name].single_s - self.costs[name].half_s) / saved for name in left}

    def with_new_prediction(self, assignment: Assignment) -> Assignment:
        """Return the same assignment with errors predicted from the present sensitivities."""
        return replace(assignment, predicted=self.predict([name in assignment.half for name in self._names]))

    def _fill(self, within: list[bool], beyond: list[bool], target: float) -> list[bool]:
        """Add runs of nodes that are half only in `beyond`, long runs first, if that is cheaper and still fits."""
        plain = self.problem(0.0)
        current, cost = list(within), plain.cost(within)
        extra = [i for i, (a, b) in enumerate(zip(within, beyond, strict=True)) if b and not a]
        length = len(extra)
        while length and length >= len(extra) // FILL_RUNS:
            for start in range(0, len(extra), length):
                trial = list(current)
                for node in extra[start : start + length]:
                    trial[node] = True
                if self._load(trial) <= target and (price := plain.cost(trial)) < cost:
                    current, cost = trial, price
            length //= 2
        return current

    def _load(self, half: Sequence[bool]) -> float:
        return max(self.predict(half), default=0.0)

    def predict(self, half: Sequence[bool]) -> tuple[float, ...]:
        """Return the predicted error of each output as a share of its limit, from half nodes and from casts."""
        totals = [0.0] * self._outputs
        for name, is_half in zip(self._names, half, strict=True):
            if is_half:
                _accumulate(totals, self._sensitivities.squares.get(name, ()))
        for crossing, source, _ in self._tensors:
            made_half = crossing.maker is not None and half[crossing.maker]
            if not made_half and any(half[reader] for reader in crossing.readers):
                _accumulate(totals, self._sensitivities.of_cast(source))
        return tuple(math.sqrt(total) for total in totals)

    def problem(self, price: float) -> CutProblem:
        """Return the cut problem in which a whole budget of squared error costs `price` seconds."""
        return CutProblem(
            half=[
                self.costs[name].half_s
                + (0.0 if i in self._forced else _priced(price, self._sensitivities.square(name)))
                for i, name in enumerate(self._names)
            ],
            single=[self.costs[name].single_s for name in self._names],
            crossings=[
                Crossing(
                    c.maker,
                    c.readers,
                    c.to_half + _priced(price, max(self._sensitivities.of_cast(source), default=0.0)),
                    c.to_single,
                    c.read_in_single,
                )
                for c, source, _ in self._tensors
            ],
            must_single=self._pinned,
            must_half=self._forced - self._pinned,
        )

    def _cut(self, price: float) -> _Cut:
        if price not in self._cuts:
            half = solve(self.problem(price))
            self._cuts[price] = _Cut(half, self._load(half))
        return self._cuts[price]

    def _describe(self, half: Sequence[bool], cheapest: Sequence[bool]) -> Assignment:
        plain = self.problem(0.0)
        nodes = sum(
            self.costs[name].half_s if h else self.costs[name].single_s
            for name, h in zip(self._names, half, strict=True)
        )
        cost, least = plain.cost(half), plain.cost(cheapest)
        saved = sum(each.single_s for each in self.costs.values()) - least
        return Assignment(
            half=self._chosen(half),
            predicted=self.predict(half),
            cheapest=self._chosen(cheapest),
            cast_s=max(0.0, cost - nodes) if math.isfinite(cost) else 0.0,
            costs=self.costs,
            forgone=(cost - least) / saved if saved > 0 and math.isfinite(cost - least) else 0.0,
        )

    def _chosen(self, half: Sequence[bool]) -> frozenset[str]:
        return frozenset(name for name, is_half in zip(self._names, half, strict=True) if is_half)

    def _find_tensors(self, model: ir.Model, sizes: Sizes, device: DeviceCosts) -> list[tuple[Crossing, str, ir.Value]]:
        """Return every float tensor that may be cast, with the name whose sensitivity a cast of it to half has."""
        values = [v for graph in (model.graph, *model.graph.subgraphs()) for v in graph.inputs]
        values += [v for node in model.graph.all_nodes() for v in node.outputs]
        found = []
        for value in values:
            if not schemas.is_float(value):
                continue
            readers = tuple(
                dict.fromkeys(i for use in value.uses() if (i := self._reader(use.node, use.idx)) is not None)
            )
            in_single = value.is_graph_output() or any(self._reader(use.node, use.idx) is None for use in value.uses())
            maker = self._maker(value)
            if maker is None and not readers:
                continue
            to_half, to_single = crossing_costs(value, sizes, device, paid=value in self._paid_border)
            found.append((Crossing(maker, readers, to_half, to_single, in_single), source_of(value), value))
        return found

    def _reader(self, node: ir.Node, position: int) -> int | None:
        operands = self._operands.get(node.name or "")
        return self._index.get(node) if operands and position in operands.inputs else None

    def _maker(self, value: ir.Value) -> int | None:
        node = value.producer()
        if node is None:
            return None
        operands = self._operands.get(node.name or "")
        return self._index.get(node) if operands and value.index() in operands.outputs else None


def source_of(value: ir.Value) -> str:
    """Return the node or input whose rounding a cast of this tensor repeats, looking through exact operators."""
    node = value.producer()
    while (
        node is not None
        and is_exact(node)
        and node.inputs
        and node.inputs[0] is not None
        and schemas.is_float(node.inputs[0])
    ):
        value = node.inputs[0]
        node = value.producer()
    return (node.name or "") if node is not None else input_source(value.name or "")


def _priced(price: float, square: float) -> float:
    """Return the cost of a squared error; infinite if the error is infinite, even at a price of 0."""
    return price * square if math.isfinite(square) else math.inf


def _accumulate(totals: list[float], squares: Sequence[float]) -> None:
    for position, square in enumerate(squares):
        totals[position] += square
