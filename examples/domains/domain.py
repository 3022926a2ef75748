"""A domain as data: its task, its files, its measures and its question; and the row of figures that comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HALVES = ("fp16", "bf16")


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that `demi check` measures on held-out data, in FP32 and in half."""

    name: str
    """Its name in the table, such as `accuracy`."""
    metric: str
    """`--metric` of `demi check`."""
    data: str = "heldout"
    """File or folder with the held-out data, below the example's folder."""
    labels: str = ""
    """The array with the right answers; empty for texts, images and sounds, whose labels are beside them."""


@dataclass(frozen=True, slots=True)
class Domain:
    """One worked example."""

    name: str
    data: str
    """The data in a few words, for the table: where they come from, or that they are synthetic."""
    task: str
    """The task for `demi train`, as `package.module:Class`."""
    steps: int
    prepare: Callable[[Path], None]
    """Writes the files of processing, the held-out data and the question into the example's folder."""
    measures: tuple[Measure, ...]
    ask: Callable[[str, str, Path], str]
    """Asks the server at HOST:PORT, the model NAME, with a file of the example's folder; returns the answer in words."""
    export: tuple[str, ...] = ()
    """More options of `demi export`; `{folder}` stands for the example's folder."""
    train: tuple[str, ...] = ()
    """More options of `demi train`."""

    def options(self, folder: Path) -> tuple[str, ...]:
        """Return the options of `demi export`."""
        return tuple(option.format(folder=folder) for option in self.export)


@dataclass(frozen=True, slots=True)
class Score:
    """One measure of a model in one half type, beside FP32."""

    fp32: float
    half: float
    low: float
    high: float
    """The 95% interval of the loss from FP32 to half, by a paired bootstrap over the samples."""
    samples: int


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one example."""

    domain: str
    data: str
    scores: dict[str, dict[str, Score]]
    """By name of the measure, then by half type."""
    mebibytes: dict[str, float]
    """Size of the model's file, by type: `fp32`, `fp16`, `bf16`."""
    rows_per_second: dict[str, float]
    """Rows a second of the model alone in batches of 8, by type."""
    answer: str
    seconds: float
    """Time of the whole example."""
    machine: str
    date: str

    def write(self, path: Path) -> None:
        """Write the row as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_row(path: Path) -> Row:
    """Return a row that `Row.write` wrote."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found["scores"] = {
        measure: {half: Score(**score) for half, score in halves.items()} for measure, halves in found["scores"].items()
    }
    return Row(**found)
