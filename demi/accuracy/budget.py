"""The accuracy budget: the largest allowed error of half-precision outputs against FP32."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

from demi.accuracy.detector import Detector
from demi.errors import InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for one output; None sets no limit. Non-finite values where FP32 is finite are never allowed.

    - `relative_l2`: at most ||half - fp32|| / ||fp32||
    - `max_abs`: at most the largest |half - fp32|
    - `cosine`: at least the smallest cosine similarity along the last axis
    - `top1`: at least the share of rows whose largest element stays the same
    - `agree`: at least the share of an integer output's elements that stay the same; without it, all must
    - `steps`: at most the largest difference of an integer output's element; its relative L2 is then measured as well
    - `boxes`: at most the share of a detector's boxes that appear, vanish or change their class

    The last three set how boxes are matched, and are not limits:

    - `iou`: the least overlap of two boxes that count as the same
    - `score`: boxes below this score are ignored
    - `margin`: a box whose score or overlap is this close to the threshold that would drop it may appear or vanish
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
        """Return the limits that are set, as (metric, limit)."""
        return [(name, value) for name in METRICS if (value := getattr(self, name)) is not None]

    def tightened(self, share: float) -> Limits:
        """Return these limits with this share of the error that `relative_l2`, `max_abs` and `cosine` allow."""
        return replace(
            self,
            relative_l2=None if self.relative_l2 is None else share * self.relative_l2,
            max_abs=None if self.max_abs is None else share * self.max_abs,
            cosine=None if self.cosine is None else 1 - share * (1 - self.cosine),
        )

    def over(self, other: Limits) -> Limits:
        """Return these limits, with those of `other` for metrics that have none here."""
        return Limits(*(b if a is None else a for a, b in zip(_values(self), _values(other), strict=True)))


def _values(limits: Limits) -> tuple[float | None, ...]:
    return tuple(getattr(limits, f.name) for f in fields(limits))


AT_LEAST = frozenset({"cosine", "top1", "agree"})
"""Metrics that must be at least their limit; all others must be at most their limit."""

SHARES = frozenset({"cosine", "top1", "agree", "boxes", "iou", "score", "margin"})
"""Metrics and settings whose values lie between 0 and 1."""

MATCHING = ("iou", "score", "margin")
"""Settings of box matching, given together with `boxes`."""

METRICS = tuple(f.name for f in fields(Limits) if f.name not in MATCHING)

TOKENS = "tokens"
"""The limit for a model that generates: it is for its texts, and for none of its outputs."""

DEFAULT_LIMITS = Limits(relative_l2=1e-2)

DEFAULT_BOXES = Limits(boxes=0.01, iou=0.5, score=0.25, margin=0.01)
"""Limits for the boxes of a detector without limits of its own."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits for all outputs, and limits for single outputs by name."""

    default: Limits = DEFAULT_LIMITS
    outputs: Mapping[str, Limits] = field(default_factory=dict)
    detectors: tuple[Detector, ...] = ()
    """Detectors, whose outputs are compared by matched boxes."""
    tokens: float | None = None
    """At least the share of tokens that a model generates as FP32 does; None sets no limit."""

    def limits(self, output: str) -> Limits:
        """Return the limits of one output.

        Limits for it that only count changed elements or boxes are added to those of all outputs; others replace them.
        """
        for_all = replace(self.default, boxes=None, iou=None, score=None, margin=None)
        own = self.outputs.get(output)
        if own is None:
            return for_all
        return own if _measures_size(own) else own.over(for_all)

    def tightened(self, share: float) -> Budget:
        """Return the budget with this share of every error allowed; limits that count elements or boxes stay."""
        outputs = {name: limits.tightened(share) for name, limits in self.outputs.items()}
        return replace(self, default=self.default.tightened(share), outputs=outputs)

    def check_names(self, outputs: Iterable[str]) -> None:
        """Raise InputError when the budget names an output that the model does not have."""
        known = list(outputs)
        for name in self.outputs:
            if name not in known:
                raise InputError(
                    f"the budget names output `{name}`, which the model does not have",
                    hint="its outputs are " + ", ".join(known),
                )

    def with_detectors(self, detectors: Iterable[Detector]) -> Budget:
        """Return the budget for a model with these detectors; box limits that are not set get the defaults."""
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
        """Return this budget as a replacement of `known`, the export's, whose detectors and integer limits are kept."""
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
        tokens = known.tokens if self.tokens is None else self.tokens
        return replace(self, outputs=outputs, tokens=tokens).with_detectors(known.detectors)


def _of_boxes(limits: Limits) -> dict[str, float | None]:
    return {name: getattr(limits, name) for name in ("boxes", *MATCHING)}


def _measures_size(limits: Limits) -> bool:
    return any(name not in ("agree", "steps", "boxes") for name, _ in limits.items())


def parse_budget(texts: Iterable[str]) -> Budget:
    """Parse `--budget` values: `relative_l2=1e-2,cosine=0.999`, `logits:top1=0.99` for one output, `tokens=0.99`.

    Raises InputError for an unknown metric, a limit out of range, and a limit that is given twice.
    """
    default: Limits | None = None
    outputs: dict[str, Limits] = {}
    tokens: float | None = None
    for text in texts:
        if text.partition("=")[0].strip() == TOKENS:
            tokens = _parse_tokens(tokens, text)
            continue
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
    return Budget(default or DEFAULT_LIMITS, outputs, tokens=tokens)


def _parse_tokens(before: float | None, text: str) -> float:
    """Return the limit for generated tokens, which stands by itself: `tokens=0.99`."""
    try:
        limit = float(text.partition("=")[2])
    except ValueError:
        limit = math.nan
    if not 0 <= limit <= 1:
        raise InputError(f"cannot read `{text}` as a budget", hint="write a share alone, such as --budget tokens=0.99")
    if before is not None:
        raise InputError("the limit for tokens is given twice", where=f"--budget {text}", hint="remove one")
    return limit


def _require_boxes(limits: Limits | None) -> None:
    """Raise InputError for settings of box matching without a limit for boxes."""
    if limits is None or limits.boxes is not None:
        return
    if alone := [name for name in MATCHING if getattr(limits, name) is not None]:
        raise InputError(
            f"`{alone[0]}` sets how boxes are matched and is not a limit",
            where="--budget",
            hint=f"give it together with boxes, e.g. boxes={DEFAULT_BOXES.boxes:g},{alone[0]}={getattr(limits, alone[0]):g}",
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
                f"`{value}` is not a limit for {metric} in `{text}`",
                hint="use a number >= 0 (and <= 1 for cosine, for shares, and for box matching)",
            )
        if getattr(limits, metric) is not None:
            raise InputError(f"the limit for {metric} is given twice", where=f"--budget {text}", hint="remove one")
        limits = replace(limits, **{metric: limit})
    return limits
