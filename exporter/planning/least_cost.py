"""The least that a plan could cost by a model's ranges alone: the minimum cut, without a run and without regard to errors."""

from __future__ import annotations

import math
from typing import NamedTuple

import onnx_ir as ir

from demi.calibration.emulation.sensitivity import Sensitivities
from demi.calibration.profile import RangeProfile
from demi.exporter.planning.constraints import constrain
from demi.exporter.planning.costs import Sizes
from demi.exporter.planning.measured_facts import measured_facts
from demi.exporter.planning.node_patterns import forced_nodes
from demi.exporter.planning.plan_settings import PlanSettings
from demi.exporter.planning.planner import Planner
from demi.float16 import half_format

DIGITS = 12
"""Decimal digits of seconds in which two costs must differ to count as different."""


class LeastCost(NamedTuple):
    """The cost of the cheapest plan; of two that take the same time, that with fewer nodes in FP32 is less."""

    seconds: float
    """By the device's costs, casts included, to `DIGITS`."""
    single: int
    """Nodes in FP32 that could be half but for their ranges and costs."""


def least_cost(model: ir.Model, profile: RangeProfile, settings: PlanSettings) -> LeastCost:
    """Return the least cost of a prepared model with these ranges. Raises ConversionError as `constrain` does."""
    facts = measured_facts(model, half_format(settings.precision), profile, settings.keep_fp32)
    planner = Planner(
        model,
        facts.operands,
        Sizes(profile),
        settings.device,
        Sensitivities({}, frozenset(), 0),
        constrain(facts, settings.force_half).keys(),
        forced_nodes(model, settings.force_half, settings.keep_fp32),
        settings.half_io,
        settings.half_names,
    )
    found = planner.assign(math.inf)
    seconds = found.cast_s + sum(
        cost.half_s if name in found.half else cost.single_s for name, cost in found.costs.items()
    )
    return LeastCost(round(seconds, DIGITS), len(found.costs) - len(found.half))
