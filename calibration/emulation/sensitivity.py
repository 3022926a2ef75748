"""Sensitivities: the output error that each node's rounding causes.

For node i, s_i = (relative L2 at the output / limit)^2 if only the results and the weights of node i are rounded.
Rounding errors are nearly independent, so the squares add: for a set H of half nodes,

    predicted error of an output = limit * sqrt(sum of s_i over H)

Nodes are measured in groups first, which is enough if the cheapest plan is within the budget; else the groups that
matter are split. A node in a group that was not split gets an equal share of the group's square.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from demi.calibration.deadline import Deadline
from demi.calibration.emulation.trials import TrialRunner

GROUPS = 24
"""Number of groups that a large graph is cut into first."""

SUSPECT_GROUPS = 12
"""Number of groups of the nodes that are suspected of large errors."""


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """s_i for each node and output, the nodes measured alone, and the number of trials."""

    squares: Mapping[str, tuple[float, ...]]
    measured: frozenset[str]
    trials: int
    stored: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """s_i of a cast of the node's result to half, for nodes whose `squares` include other errors as well."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Number, from 1, of the group that a node was measured in; absent for nodes measured alone."""

    def square(self, node: str) -> float:
        """Return the node's largest s_i over the outputs."""
        return max(self.squares.get(node, (0.0,)), default=0.0)

    def of_cast(self, node: str) -> tuple[float, ...]:
        """Return s_i of a cast of the node's result to half, for each output."""
        return self.stored.get(node) or self.squares.get(node, ())

    def scaled(self, factors: Sequence[float]) -> Sensitivities:
        """Return sensitivities with the squares of each output multiplied by its factor."""
        squares, stored = (
            {
                node: tuple(square * factor for square, factor in zip(shares, factors, strict=True))
                for node, shares in known.items()
            }
            for known in (self.squares, self.stored)
        )
        return replace(self, squares=squares, stored=stored)


@dataclass(frozen=True, slots=True)
class _Group:
    """Nodes that were measured together."""

    nodes: tuple[str, ...]
    shares: tuple[float, ...]
    suspect: bool

    @property
    def weight(self) -> float:
        return max(self.shares, default=0.0)

    def worth(self, nodes: Mapping[str, float] | None) -> float:
        return sum(nodes.get(node, 0.0) for node in self.nodes) if nodes is not None else 1.0

    @property
    def halves(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        middle = len(self.nodes) // 2
        return self.nodes[:middle], self.nodes[middle:]


class Survey:
    """A survey of sensitivities: the groups measured so far, which `refine` splits.

    `suspects` are nodes that broke the model in a trial. They are measured apart from the others, whose errors theirs
    would hide, and with their operands rounded as well: the error of a logarithm comes from its operand.
    """

    def __init__(
        self, runner: TrialRunner, nodes: Sequence[str], suspects: Sequence[str] = (), deadline: Deadline | None = None
    ) -> None:
        self.runner = runner
        self._deadline = deadline or Deadline()
        self._trials = 0
        self._free = frozenset(nodes)
        self._together = runner.shares(self._free) if nodes else ()
        self._groups = self._measure(_split_evenly(nodes, GROUPS), suspect=False)
        self._groups += self._measure(_split_evenly(suspects, SUSPECT_GROUPS), suspect=True)
        self._stored = self._measure(_split_evenly(suspects, SUSPECT_GROUPS), suspect=False)

    @property
    def is_finite(self) -> bool:
        """True if all nodes except the suspects together cause a finite error."""
        return all(math.isfinite(share) for share in self._together)

    @property
    def result(self) -> Sensitivities:
        """The current sensitivities, scaled so that all nodes except the suspects add up to their joint error.

        Rounding a value that is on half's grid already adds no error. In a residual stream that hardly changes, each
        node measured alone therefore shows an error that all of them share.
        """
        free = [group.shares for group in self._groups if not group.suspect]
        totals = [sum(column) for column in zip(*free, strict=True)]
        factors = [_factor(have, total) for have, total in zip(self._together, totals, strict=False)]
        squares: dict[str, tuple[float, ...]] = {}
        for group in self._groups:
            scales = itertools.repeat(1.0) if group.suspect else factors
            share = tuple(each * scale / len(group.nodes) for each, scale in zip(group.shares, scales, strict=False))
            squares.update(dict.fromkeys(group.nodes, share))
        stored = {
            node: tuple(each / len(group.nodes) for each in group.shares)
            for group in self._stored
            for node in group.nodes
            if len(group.nodes) == 1
            or math.isfinite(group.weight)  # measurements of their readers show which node it is
        }
        measured = frozenset(group.nodes[0] for group in self._groups if len(group.nodes) == 1)
        groups = {
            node: number
            for number, group in enumerate(self._groups, start=1)
            if len(group.nodes) > 1
            for node in group.nodes
        }
        return Sensitivities(squares, measured, self._trials, stored, groups)

    def refine(self, trials: int, worth: Mapping[str, float] | None = None, least: float = 0.0) -> int:
        """Split groups until `trials` are used, no group is worth more than `least`, or time is up.

        `worth` is each node's gain if it turns out to be harmless, by default equal for all. The group with the largest
        product of worth and square is split first: its few heavy nodes most likely hide harmless ones. Returns the
        number of groups that were split.
        """
        limit, split = self._trials + trials, 0
        while self._trials + 2 <= limit and not self._deadline.passed:
            open_ = [group for group in self._groups if len(group.nodes) > 1 and group.worth(worth) > least]
            group = max(open_, key=lambda each: each.worth(worth) * each.weight, default=None)
            if group is None or not group.weight:
                break
            self._split(group)
            split += 1
        return split

    def _split(self, group: _Group) -> None:
        place = self._groups.index(group)
        self._groups[place : place + 1] = self._measure(group.halves, suspect=group.suspect)

    def _measure(self, parts: Sequence[Sequence[str]], *, suspect: bool) -> list[_Group]:
        """Return groups with their squares; when time is up, they are a share of the joint error of all nodes."""
        measured = self.runner.shares_of_each([frozenset(nodes) for nodes in parts], stores=not suspect)
        groups = []
        for nodes in parts:
            if self._deadline.passed:
                groups.append(_Group(tuple(nodes), self._share_of_all(nodes, suspect), suspect))
            else:
                self._trials += 1
                groups.append(_Group(tuple(nodes), next(measured), suspect))
        return groups

    def _share_of_all(self, nodes: Sequence[str], suspect: bool) -> tuple[float, ...]:
        part = math.inf if suspect else len(nodes) / max(len(self._free), 1)
        return tuple(each * part if each else 0.0 for each in self._together)


def _factor(together: float, alone: float) -> float:
    """Return the ratio of the joint error to the sum of single errors, within a factor of four either way."""
    if not (math.isfinite(together) and math.isfinite(alone)) or together <= 0 or alone <= 0:
        return 1.0
    return min(max(together / alone, 0.25), 4.0)


def _split_evenly(nodes: Sequence[str], count: int) -> list[Sequence[str]]:
    """Split the nodes into at most `count` runs of nearly equal length."""
    if not nodes:
        return []
    count = min(count, len(nodes))
    bounds = [round(i * len(nodes) / count) for i in range(count + 1)]
    return [nodes[a:b] for a, b in itertools.pairwise(bounds)]
