"""The accuracy budget: how far a half-precision output may be from its FP32 reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

from demi.accuracy.detector import Detector
from demi.errors import InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for one output; None is no limit. Non-finite values where FP32 is finite are never allowed.

    - `relative_l2`: at most ||half - fp32|| / ||fp32||
    - `max_abs`: at most the largest |half - fp32|
    - `cosine`: at least the smallest cosine similarity along the last axis
    - `top1`: at least the share of rows whose largest element stays the same
    - `agree`: at least the share of an integer output's elements that stay the same; all of them without it
    - `steps`: at most the largest difference of an integer output's element, which is then compared as the number it is
    - `boxes`: at most the share of a detector's boxes that appear, vanish or change their class

    The last three say how boxes are matched, and limit nothing:

    - `iou`: two boxes are the same from this overlap on
    - `score`: boxes below this score are not looked at
    - `margin`: a box that is so near to being left out (its score to the least, its overlap to the most) may come or go
    """

    relative_l2: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    top1: float | None = None
    agree: float | None = None
    steps: float | None = None
    boxes: float | None = None
    iou: float | None = None
    score: float | None = None
    margin: float | None = None

    def __str__(self) -> str:
        return (
            ", ".join(f"{name} {'>=' if name in AT_LEAST else '<='} {value:g}" for name, value in self.items())
            or "finite"
        )

    def items(self) -> list[tuple[str, float]]:
        """The limits that are set, as (metric, limit)."""
        return [(name, value) for name in METRICS if (value := getattr(self, name)) is not None]

    def over(self, other: Limits) -> Limits:
        """These limits, and the other's where they say nothing of it."""
        return Limits(*(b if a is None else a for a, b in zip(_values(self), _values(other), strict=True)))


def _values(limits: Limits) -> tuple[float | None, ...]:
    return tuple(getattr(limits, f.name) for f in fields(limits))


AT_LEAST = frozenset({"cosine", "top1", "agree"})
"""Metrics that must be at least their limit; the others at most."""

SHARES = frozenset({"cosine", "top1", "agree", "boxes", "iou", "score", "margin"})
"""What is at most 1."""

MATCHING = ("iou", "score", "margin")
"""What goes with `boxes`."""

METRICS = tuple(f.name for f in fields(Limits) if f.name not in MATCHING)

DEFAULT_LIMITS = Limits(relative_l2=1e-2)

DEFAULT_BOXES = Limits(boxes=0.01, iou=0.5, score=0.25, margin=0.01)
"""What holds for the boxes of a detector, where the budget says nothing else."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits for every output, and other limits for outputs by name."""

    default: Limits = DEFAULT_LIMITS
    outputs: Mapping[str, Limits] = field(default_factory=dict)
    detectors: tuple[Detector, ...] = ()
    """Outputs that are judged by matched boxes."""

    def limits(self, output: str) -> Limits:
        """What holds for one output.

        Limits that say only how many elements or boxes may change leave those of all outputs in place.
        """
        for_all = replace(self.default, boxes=None, iou=None, score=None, margin=None)
        own = self.outputs.get(output)
        if own is None:
            return for_all
        return own if _measures_size(own) else own.over(for_all)

    def check_names(self, outputs: Iterable[str]) -> None:
        """Raise InputError when a limit is for an output the model does not have."""
        known = list(outputs)
        for name in self.outputs:
            if name not in known:
                raise InputError(
                    f"the budget names output `{name}`, which the model does not have",
                    hint="its outputs are " + ", ".join(known),
                )

    def judging(self, detectors: Iterable[Detector]) -> Budget:
        """The same budget for a model with these detectors: what it leaves open of their boxes is the default."""
        found = tuple(detectors)
        outputs = dict(self.outputs)
        for detector in found:
            of_any = [outputs[name] for name in detector.outputs if name in outputs and outputs[name].boxes is not None]
            limits = outputs.get(detector.boxes, Limits())
            for other in (*of_any, self.default, DEFAULT_BOXES):
                limits = limits.over(Limits(**_of_boxes(other)))
            outputs[detector.boxes] = limits
        return replace(self, outputs=outputs, detectors=found)

    def instead_of(self, known: Budget) -> Budget:
        """This budget in place of the one a model was exported with, which knows its detectors and choices."""
        outputs = dict(self.outputs)
        for name, was in known.outputs.items():
            own = outputs.get(name, Limits())
            for other in (self.default, was):
                allowed = Limits(
                    agree=other.agree, steps=other.steps, **(_of_boxes(other) if was.boxes is not None else {})
                )
                own = own.over(allowed)
            if own.items():
                outputs[name] = own
        return replace(self, outputs=outputs).judging(known.detectors)


def _of_boxes(limits: Limits) -> dict[str, float | None]:
    return {name: getattr(limits, name) for name in ("boxes", *MATCHING)}


def _measures_size(limits: Limits) -> bool:
    return any(name not in ("agree", "steps", "boxes") for name, _ in limits.items())


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
    for given in (default, *outputs.values()):
        _require_boxes(given)
    if default is not None and not _measures_size(default):
        default = default.over(DEFAULT_LIMITS)
    return Budget(default or DEFAULT_LIMITS, outputs)


def _require_boxes(limits: Limits | None) -> None:
    """Raise InputError for a way to match boxes where none are judged."""
    if limits is None or limits.boxes is not None:
        return
    if alone := [name for name in MATCHING if getattr(limits, name) is not None]:
        raise InputError(
            f"`{alone[0]}` says how boxes are matched, and is no limit",
            where="--budget",
            hint=f"write it behind boxes, e.g. boxes={DEFAULT_BOXES.boxes:g},{alone[0]}={getattr(limits, alone[0]):g}",
        )


def _parse_limits(limits: Limits, assignments: str, text: str) -> Limits:
    for assignment in assignments.split(","):
        metric, equals, value = (part.strip() for part in assignment.partition("="))
        if metric not in (*METRICS, *MATCHING) or not equals:
            raise InputError(
                f"cannot read `{text}` as a budget",
                hint=f"write metric=limit with one of {', '.join(METRICS)}, e.g. relative_l2=1e-2",
            )
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if not (math.isfinite(limit) and limit >= 0) or (metric in SHARES and limit > 1):
            raise InputError(
                f"`{value}` is no limit for {metric} in `{text}`",
                hint="use a number >= 0 (and <= 1 for cosine, for shares, and for how boxes are matched)",
            )
        if getattr(limits, metric) is not None:
            raise InputError(f"the limit for {metric} is given twice", where=f"--budget {text}", hint="leave one out")
        limits = replace(limits, **{metric: limit})
    return limits
