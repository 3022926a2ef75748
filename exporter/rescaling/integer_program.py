"""A mixed-integer linear program that grows column by column and row by row, solved by HiGHS."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
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

    def hold(self, found: Sequence[float]) -> None:
        """Keep every switch as it is in a solution, and forget all prices."""
        for column in self.switches:
            self.low[column] = self.high[column] = float(round(found[column]))
        self.costs = [0.0] * len(self.costs)
        self.switches.clear()

    def row(self, terms: Mapping[int, float], low: float, high: float) -> None:
        """low <= the sum of coefficient times column <= high."""
        self.rows.append((dict(terms), low, high))

    def solve(self, seconds: float) -> list[float] | None:
        """The values of the columns; None where there is no solution, or none was found in time."""
        entries = [(r, c, v) for r, (terms, _, _) in enumerate(self.rows) for c, v in terms.items()]
        rows, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
        matrix = csc_array((values, (rows, columns)), shape=(len(self.rows), len(self.costs)))
        low, high = [row[1] for row in self.rows], [row[2] for row in self.rows]
        with _stdout_kept_clean():
            result = milp(
                np.array(self.costs),
                integrality=np.array(self.whole),
                bounds=Bounds(np.array(self.low), np.array(self.high)),
                constraints=[LinearConstraint(matrix, low, high)] if self.rows else [],
                options={"time_limit": seconds, "mip_rel_gap": 5e-3},
            )
        return None if result.x is None else [float(value) for value in result.x]
