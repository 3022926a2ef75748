"""HTML report of a TensorRT engine: its layers, next to the planned precision of their nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from demi.accuracy.compare import Comparison
from demi.bundles.manifest import Manifest
from demi.calibration.report.charts import bars
from demi.calibration.report.page import render

HEAVIEST = 15
"""Layers in the chart of times: the slowest ones."""
MOST_ROWS = 500
"""Most rows of the table; `layers.json` beside the page has all of them."""


class Layer(Protocol):
    """A layer as the page shows it: name and kind, nodes, types of inputs and outputs, and mean milliseconds."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def nodes(self) -> tuple[str, ...]: ...
    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def writes(self) -> tuple[str, ...]: ...
    @property
    def mean_ms(self) -> float | None: ...
    @property
    def planned(self) -> str: ...


def engine_report(
    manifest: Manifest, tensorrt: str, gpu: str, layers: Sequence[Layer], comparison: Comparison | None
) -> str:
    """Return the page of an engine of this bundle. Raises PackageError when matplotlib or Jinja is missing."""
    timed = sorted((layer for layer in layers if layer.mean_ms), key=lambda layer: -(layer.mean_ms or 0.0))[:HEAVIEST]
    times = [layer.mean_ms or 0.0 for layer in timed]
    charts = {"times": bars("Mean time by layer", [layer.name for layer in timed], times, unit="ms")}
    return render(
        "engine.html",
        charts if timed else {"times": ""},
        manifest=manifest,
        tensorrt=tensorrt,
        gpu=gpu,
        layers=layers,
        comparison=comparison,
        total_ms=sum(layer.mean_ms or 0.0 for layer in layers),
        written=dict(sorted(Counter(kind for layer in layers for kind in set(layer.writes)).items())),
        surprises=surprises(layers),
        heaviest=len(timed),
        most=MOST_ROWS,
    )


def surprises(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers that write FP32 although all of their nodes are planned in half."""
    return [layer for layer in layers if layer.planned == "half" and "fp32" in layer.writes]
