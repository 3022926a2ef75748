"""The page about a run, `report.html`: loss, scale, skips by cause, half beside FP32, and the plan with its reasons."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from demi.calibration.report.charts import bars, columns, line
from demi.calibration.report.page import render
from demi.plan import PrecisionPlan, read_plan
from demi.training.inspection import FILE as INSPECTIONS
from demi.training.inspection import TINY
from demi.training.logs import read_log
from demi.training.request import Trained
from demi.training.settle_plan import FILE as PLAN

FILE = "report.html"
MOST_POINTS = 2000
"""Points of a curve; of longer runs every so many steps."""
MOST_BARS = 15
MOST_ROWS = 200
STUCK = 0.1
"""Share of a layer's gradients that the best loss scale may lose."""


def write_report(done: Trained) -> Path:
    """Write the page of a run into its folder, and return its path.

    Raises PackageError when matplotlib or Jinja is missing.
    """
    lines = read_log(done.folder)
    taken = [each for each in lines if "loss" in each]
    inspections = read_inspections(done.folder)
    last = inspections[-1] if inspections else None
    updates = [each for each in taken if "skip" not in each]
    values: dict[str, Any] = {
        "name": done.folder.name,
        "precision": done.precision,
        "steps": done.steps,
        "updates": done.updates,
        "skipped": done.steps - done.updates,
        "loss": float(updates[-1]["loss"]) if updates else None,
        "metrics": done.metrics,
        "causes": causes(taken),
        "last": last,
        "inspections": len(inspections),
        "edge": math.floor(math.log2(TINY / last["scale"])) if last else 0,
        "stuck": stuck(last["layers"]) if last else [],
        "stuck_share": STUCK,
        "plan": plan_of(done.folder),
        "most": MOST_ROWS,
    }
    target = done.folder / FILE
    target.write_text(render("training.html", _charts(taken, inspections), **values), encoding="utf-8")
    return target


def plan_of(folder: Path) -> PrecisionPlan | None:
    """Return the plan that a run trained with, its FP32 modules first; None for a run without one."""
    path = folder / PLAN
    if not path.is_file():
        return None
    plan = read_plan(path)
    ordered = sorted(plan.decisions.items(), key=lambda each: each[1].is_half)
    return replace(plan, decisions=dict(ordered))


def read_inspections(folder: Path) -> list[dict[str, Any]]:
    """Return the inspected steps of a run, each once: after a resume the later one counts."""
    path, found = folder / INSPECTIONS, {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            each = json.loads(text)
        except ValueError:
            break  # cut short by a crash
        found[each["step"]] = each
    return [found[step] for step in sorted(found)]


def causes(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the causes of skips, the most frequent first, with how many steps each skipped and which."""
    found: dict[str, list[int]] = {}
    for each in lines:
        if "skip" in each:
            found.setdefault(each["skip"], []).append(each["step"])
    rows = [{"text": text, "count": len(steps), "first": steps[0], "last": steps[-1]} for text, steps in found.items()]
    return sorted(rows, key=lambda row: -row["count"])


def stuck(layers: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the layers for which no one loss scale fits, the worst first."""
    return sorted((each for each in layers if each["lost_at_best"] > STUCK), key=lambda each: -each["lost_at_best"])


def _charts(lines: Sequence[Mapping[str, Any]], inspections: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    every = max(1, len(lines) // MOST_POINTS)
    shown = lines[::every]
    steps = [each["step"] for each in shown]

    def curve(title: str, name: str, *, logarithmic: bool = False) -> str:
        return line(title, steps, [float(each.get(name, math.nan)) for each in shown], logarithmic=logarithmic)

    scaled = any(each.get("precision/scale", 1.0) != 1.0 for each in lines)
    charts = {
        "loss": curve("Loss", "loss"),
        "norm": curve("Norm of the gradients", "precision/gradient_norm", logarithmic=True),
        "scale": curve("Loss scale", "precision/scale", logarithmic=True) if scaled else "",
    }
    if inspections:
        charts |= _inspection_charts(inspections)
    return charts


def _inspection_charts(inspections: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    last = inspections[-1]
    worst = sorted((each for each in last["layers"] if each["error"] is not None), key=lambda each: -each["error"])
    counts = {int(exponent): count for exponent, count in last["histogram"].items()}
    total = sum(counts.values()) or 1
    places = sorted(counts)
    return {
        "error": line("Distance from FP32", [e["step"] for e in inspections], [e["error"] for e in inspections]),
        "layers": bars(
            "Distance from FP32 by layer",
            [each["name"] for each in worst[:MOST_BARS]],
            [100 * each["error"] for each in worst[:MOST_BARS]],
            unit="%",
        )
        if worst
        else "",
        "histogram": columns(
            "Sizes of gradients",
            places,
            [counts[place] / total for place in places],
            edge=math.floor(math.log2(TINY / last["scale"])),
        ),
    }
