"""Results of turns, and the table rows made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np


@dataclass(frozen=True)
class Turn:
    """Result of one turn: latency of each good answer, and CPU seconds of the process that did the work."""

    latencies_s: list[float]
    seconds: float
    cpu_s: float
    errors: int = 0
    """Answers other than 200 and 503, and connections that the server closed."""
    rows: int = 1
    """Rows per request; more than one only without a server."""
    refused_s: Sequence[float] = ()
    """Latency of each 503, in seconds."""

    @property
    def rate(self) -> float:
        """Rows per second."""
        return len(self.latencies_s) * self.rows / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per row."""
        return 1000 * self.cpu_s / max(len(self.latencies_s) * self.rows, 1)

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies, in milliseconds."""
        return 1000 * float(np.percentile(self.latencies_s, percent)) if self.latencies_s else float("nan")


@dataclass(frozen=True)
class Turns:
    """Turns of one subject, summarized by their medians."""

    turns: list[Turn]

    @property
    def rate(self) -> float:
        """Rows per second."""
        return median(turn.rate for turn in self.turns)

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per row."""
        return median(turn.cpu_ms for turn in self.turns)

    @property
    def errors(self) -> int:
        """Number of errors in all turns."""
        return sum(turn.errors for turn in self.turns)

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies, in milliseconds."""
        return median(turn.percentile_ms(percent) for turn in self.turns)

    def ratio(self, other: Turns) -> float:
        """Return the median of the rates' ratios, round by round: noise longer than a round cancels out."""
        return median(mine.rate / theirs.rate for mine, theirs in zip(self.turns, other.turns, strict=True))


def table(names: Sequence[str]) -> str:
    """Return the header of a Markdown table with these columns."""
    return line(names) + "\n" + line(["---"] * len(names))


def line(cells: Sequence[object]) -> str:
    """Return one row of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"
