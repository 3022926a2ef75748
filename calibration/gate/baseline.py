"""The baseline: the measures of each model when its accuracy was last reviewed.

A baseline is a JSON file for version control, so that its changes are reviewed. For each model it holds every measure
with its tolerance, a bounded number of per-sample rows for paired comparison, and the precision plan.
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
from demi.tensors import Array

SCHEMA = 1

DEFAULT_TOLERANCES: dict[str, float | str] = {
    "relative_l2": "10%",
    "model_bytes": "2%",
    "fp32_nodes": 0.02,
    "boxes": 0.002,
    "agree": 0.002,
    "tokens": 0.002,
    "top1": 0.002,
    "top5": 0.002,
    "f1": 0.002,
    "miou": 0.002,
    "dice": 0.002,
    "spearman": 0.002,
}
"""The most by which a measure may become worse: a number in its own units, or a share of its value in the baseline."""
USERS_TOLERANCE = "1%"
"""The default for a user's own metric."""

ERROR_FLOOR = 1e-6
"""Smallest tolerance of relative L2: machines sum in different orders."""

_ROW = re.compile(r"\[\n\s+([-+\d.eE]+(?:,\n\s+[-+\d.eE]+)*)\n\s+\]")
"""An array of numbers in indented JSON. JSON strings hold no line breaks, so none matches."""

_DIGITS = 7
"""Significant digits of the rows: enough for a paired comparison, and few enough to keep the file small."""

_HOW_TO_WRITE = "write a new one with --write-baseline, and review what changed"
_HOW_TO_REPLACE = "restore it from version control, or remove it and write a new one with --write-baseline"


class StoredMeasure(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One measure in the file, and how much worse it may become."""

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
        """Return the key that identifies the same measure in another run: its name and output."""
        return self.name, self.output

    @property
    def label(self) -> str:
        """Return its name, with its output if it has one."""
        return f"{self.name} of `{self.output}`" if self.output is not None else self.name

    @property
    def allowed(self) -> float:
        """Return the tolerance in the measure's own units."""
        allowed = _allowed(self.tolerance, self.value)
        return max(allowed, ERROR_FLOOR) if self.name == "relative_l2" else allowed

    def row_array(self) -> Array:
        """Return the rows as float64 `[samples, numbers]`."""
        return np.array(self.rows, dtype=np.float64)


class Entry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One model at the time its baseline was written."""

    version: int
    precision: str
    origin: str
    """Description of the samples that it was measured on."""
    samples: int
    digest: str
    """SHA-256 of those samples."""
    plan: dict[str, str]
    """Each node's precision and reason, in graph order: `half safe`."""
    measures: list[StoredMeasure]
    device: str = "cpu"
    """The device that the half model ran on; on `cpu` it was emulated."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    models: dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Baseline:
    """The models of a baseline file, by name."""

    path: Path
    models: Mapping[str, Entry]

    def entry(self, model: str, precision: str, device: str = "cpu") -> Entry:
        """Return the entry of a model. Raises InputError when there is none, or for another precision or device kind."""
        if model not in self.models:
            raise InputError(
                f"the baseline holds no model `{model}`",
                where=str(self.path),
                hint=f"it holds {', '.join(self.models) or 'no models'}; add the model with --write-baseline",
            )
        entry = self.models[model]
        if entry.precision != precision:
            raise InputError(
                f"the baseline of `{model}` is for {entry.precision}, but the bundle is {precision}",
                where=str(self.path),
                hint=_HOW_TO_WRITE,
            )
        if entry.device.partition(":")[0] != device.partition(":")[0]:  # any GPU may be compared with any other
            raise InputError(
                f"the baseline of `{model}` was measured on {entry.device}, but this check runs on {device}",
                where=str(self.path),
                hint=f"check with {_option(entry.device)}, or keep a baseline for each device",
            )
        return entry


def _option(device: str) -> str:
    """The option of `demi check` that measures on a device, or on a CPU in OpenVINO."""
    return f"--runtime {device}" if device == "openvino" else f"--device {device}"


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file. Raises InputError, naming the field that is wrong."""
    try:
        raw: Any = msgspec.json.decode(path.read_bytes())
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if schema != SCHEMA:
            raise _unreadable(path, f"it has schema {schema!r}; this Demi reads schema {SCHEMA}")
        found = msgspec.convert(raw, _File)
    except FileNotFoundError as error:
        raise InputError("no such baseline", where=str(path), hint="write one with --write-baseline") from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    for model, entry in found.models.items():
        for measure in entry.measures:
            if problem := _problem(measure):
                raise _unreadable(path, f"{measure.name} of `{model}`: {problem}")
        decode_plan(entry, path)
    return Baseline(path, found.models)


def write_baseline(path: Path, models: Mapping[str, Entry]) -> None:
    """Write a baseline file atomically, one row of numbers per line, so that its diffs are readable."""
    document = msgspec.json.format(msgspec.json.encode(_File(SCHEMA, dict(models))), indent=2).decode()
    write_whole(path, _ROW.sub(lambda row: "[" + re.sub(r",\n\s+", ", ", row[1]) + "]", document) + "\n")


def stored_measure(measure: Measure, tolerance: float | str | None, known: Entry | None) -> StoredMeasure:
    """Return a measure for the file, with the given tolerance, else the one in the `known` entry, else the default."""
    before = known and next((each for each in known.measures if each.key == measure.key), None)
    if tolerance is None:
        tolerance = before.tolerance if before else DEFAULT_TOLERANCES.get(measure.name, USERS_TOLERANCE)
    rows = [] if measure.rows is None else [[_short(number) for number in row] for row in measure.rows.tolist()]
    return StoredMeasure(
        measure.name, measure.value, tolerance, measure.output, measure.higher_is_better, measure.formula, rows
    )


def encode_plan(plan: PrecisionPlan | None) -> dict[str, str]:
    """Return a plan as baselines store it: precision and reason by node, in graph order."""
    decisions = plan.decisions.values() if plan else ()
    return {each.node: f"{each.precision.value} {each.reason.value}" for each in decisions}


def decode_plan(entry: Entry, path: Path) -> PrecisionPlan:
    """Return the plan of an entry, without operators and evidence. Raises InputError for unknown words in it."""
    decisions = []
    for node, text in entry.plan.items():
        precision, _, reason = text.partition(" ")
        try:
            decisions.append(Decision(node, "", Precision(precision), Reason(reason)))
        except ValueError as error:
            raise _unreadable(path, f"the plan has `{text}` for `{node}`") from error
    return make_plan(entry.precision, decisions)


def parse_tolerances(texts: Sequence[str]) -> dict[str, float | str]:
    """Parse tolerances such as `top1=0.005` and `relative_l2=20%`, by measure. Raises InputError for other texts."""
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
        return f"`{measure.tolerance}` is not a tolerance: write a number >= 0, or a share such as 10%"
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


def require_unique_names(models: Sequence[str]) -> None:
    """Raise InputError when two checked bundles have the same model name."""
    twice = [name for name, count in Counter(models).items() if count > 1]
    if twice:
        raise InputError(
            f"two bundles are called `{twice[0]}`, and the baseline can hold only one",
            hint="write the baseline from one bundle of each name",
        )
