"""The accuracy budget: how far a half-precision output may be from its FP32 reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

from demi.errors import InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for one output; None is no limit. Non-finite values where FP32 is finite are never allowed.

    - `relative_l2`: at most ||half - fp32|| / ||fp32||
    - `max_abs`: at most the largest |half - fp32|
    - `cosine`: at least the smallest cosine similarity along the last axis
    - `top1`: at least the share of rows whose largest element stays the same
    """

    relative_l2: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    top1: float | None = None

    def __str__(self) -> str:
        return (
            ", ".join(f"{name} {'>=' if name in AT_LEAST else '<='} {value:g}" for name, value in self.items())
            or "finite"
        )

    def items(self) -> list[tuple[str, float]]:
        """The limits that are set, as (metric, limit)."""
        return [(f.name, value) for f in fields(self) if (value := getattr(self, f.name)) is not None]


AT_LEAST = frozenset({"cosine", "top1"})
"""Metrics that must be at least their limit; the others at most."""

METRICS = tuple(f.name for f in fields(Limits))

DEFAULT_LIMITS = Limits(relative_l2=1e-2)


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits for every output, and other limits for outputs by name."""

    default: Limits = DEFAULT_LIMITS
    outputs: Mapping[str, Limits] = field(default_factory=dict)

    def limits(self, output: str) -> Limits:
        """What holds for one output."""
        return self.outputs.get(output, self.default)

    def check_names(self, outputs: Iterable[str]) -> None:
        """Raise InputError when a limit is for an output the model does not have."""
        known = list(outputs)
        for name in self.outputs:
            if name not in known:
                raise InputError(
                    f"the budget names output `{name}`, which the model does not have",
                    hint="its outputs are " + ", ".join(known),
                )


def parse_budget(texts: Iterable[str]) -> Budget:
    """A Budget from `--budget` values: `relative_l2=1e-2,cosine=0.999`, or `logits:top1=0.99` for one output.

    Raises InputError for an unknown metric, a limit that is no sensible number, and one that is given twice.
    """
    default: Limits | None = None
    outputs: dict[str, Limits] = {}
    for text in texts:
        output, colon, assignments = text.rpartition(":")
        base = outputs.get(output, Limits()) if colon else default or Limits()
        limits = _parse_limits(base, assignments, text)
        if colon:
            outputs[output] = limits
        else:
            default = limits
    return Budget(default or DEFAULT_LIMITS, outputs)


def _parse_limits(limits: Limits, assignments: str, text: str) -> Limits:
    for assignment in assignments.split(","):
        metric, equals, value = (part.strip() for part in assignment.partition("="))
        if metric not in METRICS or not equals:
            raise InputError(
                f"cannot read `{text}` as a budget",
                hint=f"write metric=limit with one of {', '.join(METRICS)}, e.g. relative_l2=1e-2",
            )
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if not (math.isfinite(limit) and limit >= 0) or (metric in AT_LEAST and limit > 1):
            raise InputError(
                f"`{value}` is no limit for {metric} in `{text}`",
                hint="use a number >= 0 (and <= 1 for cosine and top1)",
            )
        if getattr(limits, metric) is not None:
            raise InputError(f"the limit for {metric} is given twice", where=f"--budget {text}", hint="leave one out")
        limits = replace(limits, **{metric: limit})
    return limits
