"""A mixed-integer linear program that grows column by column and row by row, solved by HiGHS."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csc_array

_REDIRECTED = threading.Lock()


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """While the block runs, what native code prints goes to stderr.

    HiGHS prints a line about its search on stdout though its output is off (jump-dev/HiGHS.jl#312), where a command's JSON is.
    """
    with _REDIRECTED:
        try:
            sys.stdout.flush()
            kept = os.dup(1)
        except (OSError, ValueError):  # there is no stdout
            yield
            return
        try:
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


WHOLE = 1e-6
"""Largest distance of a solved whole number from an integer."""

GAP = 5e-3
"""The share by which a solution may cost more than the best one."""


@dataclass(slots=True)
class Program:
    """Columns and rows of a mixed-integer program."""

    costs: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    switches: list[int] = field(default_factory=list)
    """Columns that are 0 or 1, each with a price."""
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def column(self, cost: float, low: float, high: float, *, whole: bool = False) -> int:
        """A column with its price and bounds; `whole` for one of whole numbers."""
        self.costs.append(cost)
        self.low.append(low)
        self.high.append(high)
        self.whole.append(int(whole))
        return len(self.costs) - 1

    def switch(self, cost: float) -> int:
        """A column that is 0 or 1."""
        self.switches.append(self.column(cost, 0.0, 1.0, whole=True))
        return self.switches[-1]

    def limit(self, column: int, low: float, high: float) -> None:
        """Narrow the bounds of a column."""
        self.low[column] = max(self.low[column], low)
        self.high[column] = min(self.high[column], high)

    def hold(self, found: Sequence[float]) -> None:
        """Keep every switch as it is in a solution, and forget all prices."""
        for column in self.switches:
            self.low[column] = self.high[column] = float(round(found[column]))
        self.costs = [0.0] * len(self.costs)
        self.switches.clear()

    def row(self, terms: dict[int, float], low: float, high: float) -> None:
        """low <= the sum of coefficient times column <= high."""
        self.rows.append((terms, low, high))

    def narrow(self) -> None:
        """Narrow the bounds of whole columns to what the equations with right-hand side 0 leave of them.

        Rows that hold unless a switch is on are as strong as the bounds they are written with: narrow bounds before that
        save most of the solver's work.
        """
        equations = [terms for terms, low, high in self.rows if low == high == 0]
        changed = True
        while changed:
            changed = False
            for terms in equations:
                changed |= self._narrow(terms)

    def _narrow(self, terms: Mapping[int, float]) -> bool:
        """Return whether a bound of one of an equation's columns was narrowed by those of the others."""
        low, high, changed = self.low, self.high, False
        spans = [(v * low[c], v * high[c]) if v > 0 else (v * high[c], v * low[c]) for c, v in terms.items()]
        least, most = sum(span[0] for span in spans), sum(span[1] for span in spans)
        for (column, v), (below, above) in zip(terms.items(), spans, strict=True):
            ends = sorted(((below - least) / v, (above - most) / v))
            first, last = math.ceil(ends[0] - 1e-9), math.floor(ends[1] + 1e-9)
            if first <= last and (first > low[column] or last < high[column]):
                self.limit(column, first, last)
                changed = low[column] <= high[column]
        return changed

    def solve(self, seconds: float) -> list[float] | None:
        """The values of the columns; None where there is no solution, or none was found in time."""
        return self._solve(seconds, self.whole)

    def guess(self, seconds: float) -> tuple[list[float] | None, bool]:
        """A solution in which switches stay as they are in the linear relaxation, and whether it is proven to be the best.

        An order of magnitude faster than `solve`. None where there is no such solution.
        """
        relaxed = self._solve(seconds, [0] * len(self.whole))
        if relaxed is None:
            return None, False
        low, high = list(self.low), list(self.high)
        for column in self.switches:
            if relaxed[column] < WHOLE:
                self.high[column] = self.low[column]
            elif relaxed[column] > 1 - WHOLE:
                self.low[column] = self.high[column]
        found = self._solve(seconds, self.whole)
        self.low, self.high = low, high
        return found, found is not None and self.cost_of(found) <= (1 + GAP) * self.cost_of(relaxed) + WHOLE

    def cost_of(self, found: Sequence[float]) -> float:
        """Return the price of a solution."""
        return math.fsum(price * value for price, value in zip(self.costs, found, strict=True))

    def _solve(self, seconds: float, whole: Sequence[int]) -> list[float] | None:
        from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import, and few models need it

        counts = [len(terms) for terms, _, _ in self.rows]
        rows = np.repeat(np.arange(len(counts)), counts)
        columns = np.fromiter((c for terms, _, _ in self.rows for c in terms), np.int32, len(rows))
        values = np.fromiter((v for terms, _, _ in self.rows for v in terms.values()), float, len(rows))
        matrix = csc_array((values, (rows, columns)), shape=(len(self.rows), len(self.costs)))
        low, high = [row[1] for row in self.rows], [row[2] for row in self.rows]
        with _stdout_kept_clean():
            result = milp(
                np.array(self.costs),
                integrality=np.array(whole),
                bounds=Bounds(np.array(self.low), np.array(self.high)),
                constraints=[LinearConstraint(matrix, low, high)] if self.rows else [],
                options={"time_limit": seconds, "mip_rel_gap": GAP},
            )
        return None if result.x is None else result.x.tolist()
