"""The user's settings of the search for a plan."""

from __future__ import annotations

from dataclasses import dataclass, field

from demi.accuracy.budget import Budget
from demi.accuracy.varying import STEADY, Varying
from demi.exporter.planning.costs import DeviceCosts
from demi.exporter.planning.fused_kernels import Fusing


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """Settings of the search for a plan."""

    precision: str = "fp16"
    budget: Budget = field(default_factory=Budget)
    share: float = 1.0
    """The share of the budget that a plan may use under the emulator: less than 1 for a device whose own errors are larger."""
    calibrate: bool = True
    """Measure and solve; if False, the plan follows from operator lists alone."""
    keep_fp32: tuple[str, ...] = ()
    force_half: tuple[str, ...] = ()
    search_seconds: float = 60.0
    trials: int = 192
    """Maximum emulated runs for splitting groups of nodes; fewer if one takes long."""
    device: DeviceCosts = field(default_factory=DeviceCosts)
    half_io: bool = False
    half_names: frozenset[str] = frozenset()
    """Inputs and outputs that are half without `half_io`."""
    varying: Varying = STEADY
    """Outputs that differ from run to run in FP32 itself."""
    fusing: Fusing | None = None
    """The kernels of the target, inside which nothing is rounded; by default, every tensor of the graph is."""
    rescale: bool = True
    """Multiply constants by powers of two before planning, so that ranges beyond FP16 fit."""
