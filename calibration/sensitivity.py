"""Sensitivities: how much of the output error each node's rounding causes.

For node i, s_i = (relative L2 at the output / limit)^2 when only what node i stores is rounded: its results and its
weights. Rounding errors are nearly independent, so the squares add: for a set H of half nodes,

    predicted error of an output = limit * sqrt(sum of s_i over H)

Nodes are weighed in groups first. A model whose cheapest plan is within the budget needs no more; else the groups that
matter most are split. A node in a group that was not split gets an equal share of the group's square.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from calibration.judge import Judge

Report = Callable[[float], None]
"""Told how much of a phase is done, from 0 to 1."""

GROUPS = 24
"""How many groups a large graph is cut into first."""


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """s_i for each node and output, which of them were measured alone, and how many trials it took."""

    squares: Mapping[str, tuple[float, ...]]
    measured: frozenset[str]
    trials: int

    def square(self, node: str) -> float:
        """The node's s_i at the output where it is largest."""
        return max(self.squares.get(node, (0.0,)), default=0.0)


class Survey:
    """The state of a survey: groups weighed so far, the heaviest first. Refine it as far as it is worth."""

    def __init__(self, judge: Judge, nodes: Sequence[str]) -> None:
        self._judge = judge
        self._queue: list[tuple[float, int, list[str]]] = []
        self._squares: dict[str, tuple[float, ...]] = {}
        self._measured: set[str] = set()
        self._trials = 0
        for group in _groups(list(nodes), min(GROUPS, len(nodes))):
            self._weigh(group)
        self._together = judge.shares(frozenset(nodes)) if nodes else ()

    @property
    def result(self) -> Sensitivities:
        """What is known now, scaled so that all nodes together add up to what they cause together.

        Rounding twice what is on half's grid already costs nothing the second time (a residual stream that hardly
        changes): alone each such node shows an error that they share.
        """
        totals = [sum(column) for column in zip(*self._squares.values(), strict=True)]
        factors = [_factor(have, total) for have, total in zip(self._together, totals, strict=False)]
        squares = {
            node: tuple(square * factor for square, factor in zip(shares, factors, strict=True))
            for node, shares in self._squares.items()
        }
        return Sensitivities(squares, frozenset(self._measured), self._trials)

    def refine(
        self,
        trials: int,
        seconds: float = math.inf,
        clock: Callable[[], float] = time.perf_counter,
        report: Report | None = None,
    ) -> Sensitivities:
        """Split the heaviest groups until so many more trials are used up, every node stands alone, or time is up.

        `report` is told the share of that which is behind.
        """
        first, start = self._trials, clock()
        limit, stop = first + trials, start + seconds
        while self._queue and self._trials + 2 <= limit and clock() < stop:
            if report is not None:
                ahead = min(trials, sum(2 * len(group) - 2 for _, _, group in self._queue) + self._trials - first)
                report(max((self._trials - first) / max(ahead, 1), (clock() - start) / seconds))
            _, _, group = heapq.heappop(self._queue)
            middle = len(group) // 2
            self._weigh(group[:middle])
            self._weigh(group[middle:])
        return self.result

    def _weigh(self, group: list[str]) -> None:
        self._trials += 1
        shares = self._judge.shares(frozenset(group))
        for node in group:
            self._squares[node] = tuple(share / len(group) for share in shares)
        if len(group) == 1:
            self._measured.add(group[0])
        elif max(shares, default=0.0) > 0:
            heapq.heappush(self._queue, (-max(shares), self._trials, group))


def _factor(together: float, alone: float) -> float:
    """How much the sum of single errors exceeds the error of all, within a factor of four either way."""
    if not (math.isfinite(together) and math.isfinite(alone)) or together <= 0 or alone <= 0:
        return 1.0
    return min(max(together / alone, 0.25), 4.0)


def _groups(nodes: list[str], count: int) -> list[list[str]]:
    """The nodes in `count` runs of nearly equal length."""
    if not nodes:
        return []
    bounds = [round(i * len(nodes) / count) for i in range(count + 1)]
    return [nodes[a:b] for a, b in itertools.pairwise(bounds) if b > a]
