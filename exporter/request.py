"""The request for an export, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from demi.bundles.manifest import Manifest
from demi.calibration.samples import Samples
from demi.exporter.conversion import Conversion
from demi.exporter.planning.find_plan import PlanSettings
from demi.exporter.planning.gain import Gain
from demi.exporter.sources.options import SourceOptions
from demi.plan import PrecisionPlan


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The options of an export."""

    source: Path
    output: Path
    """The model's folder; the bundle goes into a folder below it that is named after its version."""
    settings: PlanSettings = field(default_factory=PlanSettings)
    plan: PrecisionPlan | None = None
    """A plan to carry out instead of finding one."""
    version: int = 1
    options: SourceOptions = field(default_factory=SourceOptions)
    optimize: bool = True
    """Fold constants and fuse normalizations before planning."""
    reference: bool = True
    report: bool = True
    """Draw `report.html`, where the packages for it are installed."""
    max_batch: int = 32
    force: bool = False
    samples_origin: str = ""
    encoder: Path | None = None
    """The bundle of the encoder, which is copied into that of its decoder."""

    @property
    def target(self) -> Path:
        """Return the bundle's folder."""
        return self.output / str(self.version)


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export: the bundle, the plan and the measured accuracy."""

    path: Path
    manifest: Manifest
    conversion: Conversion
    samples: Samples
    fp32_bytes: int
    half_bytes: int
    export_error: float | None
    floats: tuple[str, ...] = ("FP32",)
    """The float types in the source, `FP32` first; half weights count as FP32."""
    gain: Gain | None = None
    """The gain from half precision."""
    half_types: tuple[str, ...] = ()
    """The half types of the source's weights, before they became FP32."""
    notes: tuple[str, ...] = ()
    """Sentences for users on changes to the source and the samples."""
    warnings: tuple[str, ...] = ()
    """Sentences for users on wrong declarations in the source."""
    no_report: str = ""
    """The reason that the bundle has no report; empty when it has one."""
    fails_here: str = ""
    """The runtime's error if the half model cannot run on this machine's CPU; empty when it can, or was not tried."""
