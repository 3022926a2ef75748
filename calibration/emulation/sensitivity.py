"""Sensitivities: how much of the output error each node's rounding causes.

For node i, s_i = (relative L2 at the output / limit)^2 when only what node i stores is rounded: its results and its
weights. Rounding errors are nearly independent, so the squares add: for a set H of half nodes,

    predicted error of an output = limit * sqrt(sum of s_i over H)

Nodes are weighed in groups first. A model whose cheapest plan is within the budget needs no more; else the groups that
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
"""How many groups a large graph is cut into first."""

SUSPECT_GROUPS = 12
"""How many groups the nodes are cut into that are suspected of large errors."""


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """s_i for each node and output, which of them were measured alone, and how many trials it took."""

    squares: Mapping[str, tuple[float, ...]]
    measured: frozenset[str]
    trials: int
    stored: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What a node's result alone causes when it is rounded for a reader, where `squares` holds more than that."""

    def square(self, node: str) -> float:
        """The node's s_i at the output where it is largest."""
        return max(self.squares.get(node, (0.0,)), default=0.0)

    def of_cast(self, node: str) -> tuple[float, ...]:
        """The squares of a cast to half of what a node stores, for each output."""
        return self.stored.get(node) or self.squares.get(node, ())

    def scaled(self, factors: Sequence[float]) -> Sensitivities:
        """The same with the squares of each output multiplied by its factor."""
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
    """Nodes that were weighed together."""

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
    """The state of a survey: the groups weighed so far. Refine it as far as it is worth.

    `suspects` are nodes that were seen to break the model: they are weighed apart from the others, whose errors theirs would
    hide, and with what they read rounded as well: a logarithm is broken by its operand.
    """

    def __init__(
        self, runner: TrialRunner, nodes: Sequence[str], suspects: Sequence[str] = (), deadline: Deadline | None = None
    ) -> None:
        self.runner = runner
        self._deadline = deadline or Deadline()
        self._trials = 0
        self._free = frozenset(nodes)
        self._together = runner.shares(self._free) if nodes else ()
        self._groups = [self._weigh(group, suspect=False) for group in _cut(nodes, GROUPS)]
        self._groups += [self._weigh(group, suspect=True) for group in _cut(suspects, SUSPECT_GROUPS)]
        self._stored = [self._weigh(group, suspect=False) for group in _cut(suspects, SUSPECT_GROUPS)]

    @property
    def is_finite(self) -> bool:
        """Whether all nodes but the suspects together cause an error that can be told."""
        return all(math.isfinite(share) for share in self._together)

    @property
    def result(self) -> Sensitivities:
        """What is known now, scaled so that all nodes but the suspects add up to what they cause together.

        Rounding twice what is on half's grid already costs nothing the second time (a residual stream that hardly
        changes): alone each such node shows an error that they share.
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
            if len(group.nodes) == 1 or math.isfinite(group.weight)  # which of them it is, their readers show
        }
        measured = frozenset(group.nodes[0] for group in self._groups if len(group.nodes) == 1)
        return Sensitivities(squares, measured, self._trials, stored)

    def refine(self, trials: int, worth: Mapping[str, float] | None = None, least: float = 0.0) -> int:
        """Split groups until so many more trials are used up, none is worth more than `least`, or time is up.

        `worth` is what each node would save if it turned out to be harmless; all save the same by default. The group with the largest product of that and
        its square goes first: there a few heavy nodes most likely hide others. Returns how many groups were split.
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
        self._groups[place : place + 1] = [self._weigh(half, suspect=group.suspect) for half in group.halves]

    def _weigh(self, nodes: Sequence[str], *, suspect: bool) -> _Group:
        """A group with its squares; out of time they are taken as a part of what all cause together."""
        if self._deadline.passed:
            part = math.inf if suspect else len(nodes) / max(len(self._free), 1)
            return _Group(tuple(nodes), tuple(each * part if each else 0.0 for each in self._together), suspect)
        self._trials += 1
        return _Group(tuple(nodes), self.runner.shares(frozenset(nodes), stores=not suspect), suspect)


def _factor(together: float, alone: float) -> float:
    """How much the sum of single errors exceeds the error of all, within a factor of four either way."""
    if not (math.isfinite(together) and math.isfinite(alone)) or together <= 0 or alone <= 0:
        return 1.0
    return min(max(together / alone, 0.25), 4.0)


def _cut(nodes: Sequence[str], count: int) -> list[Sequence[str]]:
    """The nodes in at most `count` runs of nearly equal length."""
    if not nodes:
        return []
    count = min(count, len(nodes))
    bounds = [round(i * len(nodes) / count) for i in range(count + 1)]
    return [nodes[a:b] for a, b in itertools.pairwise(bounds)]
