"""What an export is asked for, and what came out of it."""

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
    """What the user asked for."""

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

    @property
    def target(self) -> Path:
        """The bundle's folder."""
        return self.output / str(self.version)


@dataclass(frozen=True, slots=True)
class Exported:
    """What came out: the bundle, the plan and the measured accuracy."""

    path: Path
    manifest: Manifest
    conversion: Conversion
    samples: Samples
    fp32_bytes: int
    half_bytes: int
    export_error: float | None
    floats: tuple[str, ...] = ("FP32",)
    """The float types that the source has, `FP32` first where it is one of them; half weights are no more half."""
    gain: Gain | None = None
    """What half precision brings this model."""
    was: tuple[str, ...] = ()
    """The half types that the source's weights had, before they became FP32."""
    words: tuple[str, ...] = ()
    """What was done to the source and the samples on the way, for people."""
    warnings: tuple[str, ...] = ()
    """What the source says of itself that is not so."""
    no_report: str = ""
    """Why the bundle holds no report, in words; empty when it does."""
    fails_here: str = ""
    """Why the half model cannot run on this machine's CPU, in the runtime's words; empty when it can, or was not tried."""
