"""HTML page about several versions of a model: errors, sizes and plans side by side, and what changed from one to the next."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demi.bundles.manifest import Manifest
from demi.calibration.report.charts import bars
from demi.calibration.report.page import render
from demi.plan import PrecisionPlan
from demi.plan_changes import NodeChange, compare_plans

MOST_CHANGES = 200
"""Nodes that are listed of one change; `demi diff` lists all."""


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """One version as its files describe it."""

    manifest: Manifest
    errors: Mapping[str, float | None]
    """Relative L2 of each output, as measured at its export; None stands for infinity."""
    plan: PrecisionPlan | None
    bytes: int

    @property
    def name(self) -> str:
        """Return `v2`."""
        return f"v{self.manifest.version}"


@dataclass(frozen=True, slots=True)
class Step:
    """Changes from one version to the next."""

    before: VersionFacts
    after: VersionFacts
    changes: tuple[NodeChange, ...]


def versions_report(versions: Sequence[VersionFacts]) -> str:
    """Return the page for versions of one model, oldest first. Raises PackageError when matplotlib or Jinja is missing."""
    outputs = list(dict.fromkeys(output for version in versions for output in version.errors))
    charts = {f"error{place}": _chart(output, versions) for place, output in enumerate(outputs)}
    return render(
        "versions.html",
        charts,
        name=versions[-1].manifest.name,
        versions=versions,
        outputs=outputs,
        steps=steps(versions),
        most=MOST_CHANGES,
    )


def steps(versions: Sequence[VersionFacts]) -> list[Step]:
    """Return what changed between neighbouring versions that both have a plan."""
    return [
        Step(before, after, compare_plans(before.plan, after.plan))
        for before, after in itertools.pairwise(versions)
        if before.plan is not None and after.plan is not None
    ]


def _chart(output: str, versions: Sequence[VersionFacts]) -> str:
    """Return the chart of one output's error over the versions; those that lack it are left out."""
    known = [version for version in versions if output in version.errors]
    values = [version.errors[output] for version in known]
    return bars(
        f"Relative L2 of {output}",
        [version.name for version in known],
        [float("inf") if value is None else value for value in values],
        unit="",
    )
