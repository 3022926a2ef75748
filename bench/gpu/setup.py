"""Types of a section's settings and of its rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Cell = float | int | str | bool | None
Row = dict[str, Cell]

PROBLEM = "problem"
"""Column of the reason that a measurement is missing; left out of a table without missing ones."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings of the measurements: device, sizes, time, and a folder for files that sections share."""

    device: str
    quick: bool
    batches: tuple[int, ...]
    each_s: float
    """Seconds for one measurement."""
    until: float
    """Deadline of the section, by `time.monotonic`."""
    work: Path

    @property
    def is_cuda(self) -> bool:
        return self.device != "cpu"

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() >= self.until


class Section(Protocol):
    """A module of this package that measures one subject."""

    def rows(self, setup: Setup) -> Iterator[Row]: ...


def attempt(measure: Callable[[], Row], **named: Cell) -> Row:
    """Return `named` and the row of `measure`, or its error as `problem`, since other rows may still succeed."""
    try:
        return named | measure()
    except Exception as error:
        return named | {PROBLEM: first_line(error)}


def first_line(error: BaseException) -> str:
    """Return an error as one short line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}"[:160] if text else type(error).__name__


def markdown(found: list[Row]) -> str:
    """Return the rows as a Markdown table with every column that any row has, the problems last."""
    columns = list(dict.fromkeys(name for row in found for name in row if name != PROBLEM))
    if any(row.get(PROBLEM) for row in found):
        columns.append(PROBLEM)
    lines = [columns, ["---:" if _is_number(found, name) else "---" for name in columns]]
    lines += [[shown(row.get(name)) for name in columns] for row in found]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(cell: Any) -> str:
    """Format a cell: four digits of a number."""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 10_000 else f"{cell:.4g}"
    return "" if cell is None else str(cell).replace("|", "/")


def _is_number(found: list[Row], name: str) -> bool:
    cells = [row[name] for row in found if row.get(name) is not None]
    return bool(cells) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells)
