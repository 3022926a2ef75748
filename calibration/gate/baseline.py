"""The baseline: what a model measured when its accuracy was last looked at and found good.

It is a JSON file for version control: a change of it is a change to review. For each model it holds every measure with
the tolerance it may worsen by, a bounded number of per-sample rows so that the comparison is paired, and the plan.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from demi.calibration.gate.measure import FORMULAS, Measure
from demi.errors import InputError
from demi.files import write_whole
from demi.plan import Decision, Precision, PrecisionPlan, Reason, make_plan

SCHEMA = 1

DEFAULT_TOLERANCES: dict[str, float | str] = {
    "relative_l2": "10%",
    "model_bytes": "2%",
    "fp32_nodes": 0.02,
    "boxes": 0.002,
    "agree": 0.002,
    "top1": 0.002,
    "top5": 0.002,
    "f1": 0.002,
    "miou": 0.002,
    "spearman": 0.002,
}
"""How much worse a measure may become: a number in its own units, or a share of what it was. A user's own metric: 1%."""
USERS_TOLERANCE = "1%"

ERROR_FLOOR = 1e-6
"""Relative L2 below which nothing is a worsening: other machines sum in other orders."""

_ROW = re.compile(r"\[\n\s+([-+\d.eE]+(?:,\n\s+[-+\d.eE]+)*)\n\s+\]")
"""An array of numbers in indented JSON; a string holds no line break, so that it cannot look like one."""

_DIGITS = 7
"""Significant digits of the rows: enough for a paired comparison, and the file stays small."""

_HOW_TO_WRITE = "write a new one with --write-baseline, and look at what changed"
_HOW_TO_REPLACE = "take it from version control, or remove it and write a new one with --write-baseline"


class StoredMeasure(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One measure as it was, and how much worse it may become."""

    name: str
    value: float
    tolerance: float | str
    """In the measure's own units, or a share of `value`, as in `10%`."""
    output: str | None = None
    higher_is_better: bool = False
    formula: str | None = None
    rows: list[list[float]] = []

    @property
    def key(self) -> tuple[str, str | None]:
        """What finds the same measure in another run."""
        return self.name, self.output

    @property
    def label(self) -> str:
        """Its name, and the output it is about."""
        return f"{self.name} of `{self.output}`" if self.output is not None else self.name

    @property
    def allowed(self) -> float:
        """The tolerance in the measure's own units."""
        allowed = _allowed(self.tolerance, self.value)
        return max(allowed, ERROR_FLOOR) if self.name == "relative_l2" else allowed


class Entry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What one model was when its baseline was written."""

    version: int
    precision: str
    origin: str
    """What it was measured on, in words."""
    samples: int
    digest: str
    """Of those samples."""
    plan: dict[str, str]
    """Each node's precision and reason, in graph order: `half safe`."""
    measures: list[StoredMeasure]
    device: str = "cpu"
    """Where the half model ran; on `cpu` it was emulated."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    models: dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Baseline:
    """The models of a baseline file, by name."""

    path: Path
    models: Mapping[str, Entry]

    def entry(self, model: str, precision: str, device: str = "cpu") -> Entry:
        """What is known of a model; InputError when that is nothing, or is of another precision or kind of device."""
        if model not in self.models:
            raise InputError(
                f"the baseline holds no model `{model}`",
                where=str(self.path),
                hint=f"it holds {', '.join(self.models) or 'none'}; add it with --write-baseline",
            )
        entry = self.models[model]
        if entry.precision != precision:
            raise InputError(
                f"the baseline of `{model}` is of {entry.precision}, the bundle is {precision}",
                where=str(self.path),
                hint=_HOW_TO_WRITE,
            )
        if entry.device.partition(":")[0] != device.partition(":")[0]:  # one GPU may follow another
            raise InputError(
                f"the baseline of `{model}` was measured on {entry.device}, and this is {device}",
                where=str(self.path),
                hint=f"check with --device {entry.device}, or keep a baseline for each device",
            )
        return entry


def read_baseline(path: Path) -> Baseline:
    """A baseline from its file; InputError says which field is wrong."""
    try:
        raw: Any = msgspec.json.decode(path.read_bytes())
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if schema != SCHEMA:
            raise _unreadable(path, f"it has schema {schema!r}; this Demi reads schema {SCHEMA}")
        found = msgspec.convert(raw, _File)
    except FileNotFoundError as error:
        raise InputError("no such baseline", where=str(path), hint="make one with --write-baseline") from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    for model, entry in found.models.items():
        for measure in entry.measures:
            if problem := _problem(measure):
                raise _unreadable(path, f"{measure.name} of `{model}`: {problem}")
        plan_of(entry, path)
    return Baseline(path, found.models)


def write_baseline(path: Path, models: Mapping[str, Entry]) -> None:
    """Write a baseline file whole or not at all: one row of numbers a line, so that a change of it can be read."""
    document = msgspec.json.format(msgspec.json.encode(_File(SCHEMA, dict(models))), indent=2).decode()
    write_whole(path, _ROW.sub(lambda row: "[" + re.sub(r",\n\s+", ", ", row[1]) + "]", document) + "\n")


def stored(measure: Measure, tolerance: float | str | None, known: Entry | None) -> StoredMeasure:
    """A measure for the file. Its tolerance is the one that is given, else the one it had, else the default."""
    before = known and next((each for each in known.measures if each.key == measure.key), None)
    if tolerance is None:
        tolerance = before.tolerance if before else DEFAULT_TOLERANCES.get(measure.name, USERS_TOLERANCE)
    rows = [] if measure.rows is None else [[_short(number) for number in row] for row in measure.rows.tolist()]
    return StoredMeasure(
        measure.name, measure.value, tolerance, measure.output, measure.higher_is_better, measure.formula, rows
    )


def plan_to_text(plan: PrecisionPlan | None) -> dict[str, str]:
    """A plan as the baseline holds it."""
    decisions = plan.decisions.values() if plan else ()
    return {each.node: f"{each.precision.value} {each.reason.value}" for each in decisions}


def plan_of(entry: Entry, path: Path) -> PrecisionPlan:
    """The plan of an entry, without operators and evidence; InputError for a precision or reason nobody knows."""
    decisions = []
    for node, text in entry.plan.items():
        precision, _, reason = text.partition(" ")
        try:
            decisions.append(Decision(node, "", Precision(precision), Reason(reason)))
        except ValueError as error:
            raise _unreadable(path, f"the plan has `{text}` for `{node}`") from error
    return make_plan(entry.precision, decisions)


def rows_of(measure: StoredMeasure) -> Any:
    """The rows as float64 `[samples, numbers]`."""
    return np.array(measure.rows, dtype=np.float64)


def parse_tolerances(texts: Sequence[str]) -> dict[str, float | str]:
    """Tolerances by measure from `top1=0.005` and `relative_l2=20%`; InputError for what is no tolerance."""
    found: dict[str, float | str] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        tolerance: float | str = value
        if not value.endswith("%"):
            try:
                tolerance = float(value)
            except ValueError:
                tolerance = math.nan
        if not equals or not _is_tolerance(tolerance):
            raise InputError(f"cannot read `{text}` as a tolerance", where="--tolerance", hint="e.g. relative_l2=20%")
        found[name] = tolerance
    return found


def _problem(measure: StoredMeasure) -> str | None:
    widths = {len(row) for row in measure.rows}
    if not _is_tolerance(measure.tolerance):
        return f"`{measure.tolerance}` is no tolerance: write a number >= 0, or a share such as 10%"
    if measure.rows and measure.formula not in FORMULAS:
        return f"unknown formula `{measure.formula}`"
    return "its rows differ in length" if len(widths) > 1 else None


def _is_tolerance(tolerance: float | str) -> bool:
    try:
        allowed = _allowed(tolerance, 1.0)
    except ValueError:
        return False
    return math.isfinite(allowed) and allowed >= 0


def _allowed(tolerance: float | str, value: float) -> float:
    if not isinstance(tolerance, str):
        return tolerance
    if not tolerance.endswith("%"):
        raise ValueError(tolerance)
    return float(tolerance.removesuffix("%")) / 100 * abs(value)


def _short(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")


def _unreadable(path: Path, problem: str) -> InputError:
    return InputError(f"the baseline cannot be read: {problem}", where=str(path), hint=_HOW_TO_REPLACE)


def names_once(models: Sequence[str]) -> None:
    """Raise InputError when a model would be written twice."""
    twice = [name for name, count in Counter(models).items() if count > 1]
    if twice:
        raise InputError(
            f"`{twice[0]}` is checked twice: which one is the baseline?", hint="write it from one bundle of each name"
        )
