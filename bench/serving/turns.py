"""What a turn of requests measured, and the row of a table that several turns make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np


@dataclass(frozen=True)
class Turn:
    """What one turn measured: seconds for each good answer, and CPU seconds of whoever did the work."""

    latencies_s: list[float]
    seconds: float
    cpu_s: float
    errors: int = 0
    """Answers other than good ones and refusals, and connections that the server closed."""
    rows: int = 1
    """Rows of each request; more than one only without a server."""
    refused_s: Sequence[float] = ()
    """Seconds until each 503."""

    @property
    def rate(self) -> float:
        """Rows per second."""
        return len(self.latencies_s) * self.rows / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds for one row."""
        return 1000 * self.cpu_s / max(len(self.latencies_s) * self.rows, 1)

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latencies, in milliseconds."""
        return 1000 * float(np.percentile(self.latencies_s, percent)) if self.latencies_s else float("nan")


@dataclass(frozen=True)
class Turns:
    """The turns of one subject, which stand for their medians."""

    turns: list[Turn]

    @property
    def rate(self) -> float:
        """Rows per second."""
        return median(turn.rate for turn in self.turns)

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds for one row."""
        return median(turn.cpu_ms for turn in self.turns)

    @property
    def errors(self) -> int:
        """All errors."""
        return sum(turn.errors for turn in self.turns)

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latencies, in milliseconds."""
        return median(turn.percentile_ms(percent) for turn in self.turns)

    def ratio(self, other: Turns) -> float:
        """The median of the ratios of the rates, round by round: noise that lasts longer than a round cancels."""
        return median(mine.rate / theirs.rate for mine, theirs in zip(self.turns, other.turns, strict=True))


def table(names: Sequence[str]) -> str:
    """The head of a Markdown table with these columns."""
    return line(names) + "\n" + line(["---"] * len(names))


def line(cells: Sequence[object]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"
