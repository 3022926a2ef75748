"""Compare a model's outputs with their FP32 reference. Pure NumPy.

A Comparison is truthy when every output is within its limits and no value became non-finite. For reference y and
measured z, in float64:

- relative L2: ||z - y||_2 / ||y||_2
- max abs: max |z - y|
- cosine: the smallest cosine similarity of a row (last axis) of z with its row of y
- SQNR: 10 log10(||y||^2 / ||z - y||^2), in dB
- top-1: the share of rows whose largest element is the same; not for images and other outputs of four or more axes,
  whose last axis holds no scores, unless the budget limits it
- agreement: the share of an integer, boolean or string output's elements that are the same
- steps: the largest difference of an integer output's element, where the budget limits it; its relative L2 is then
  measured as for floats
- boxes: the share of a detector's boxes that appear, vanish or change their class (`demi.accuracy.matching`)

The order of a detector's rows depends on the numbers. Its rows are compared for boxes that are in both answers, and its
outputs may differ in shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from demi.accuracy.budget import AT_LEAST, Budget, Limits
from demi.accuracy.detector import Detector
from demi.accuracy.matching import BoxChange, Matching, describe_changes, match
from demi.accuracy.output_sums import OutputSums, root_ratio
from demi.tensors import Array, Feeds

IMAGE_AXES = 4
"""Axes of an output from which on its last one is taken for a width: [batch, classes, height, width]."""


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """Error of one output against its reference, over all samples."""

    output: str
    relative_l2: float
    max_abs: float
    cosine: float
    top1: float | None
    """None for an output that does not hold scores (integers, rows of one element, or images)."""
    sqnr_db: float
    non_finite: int
    """Elements that are NaN or infinite where the reference is finite, or the other way round."""
    mismatched: int
    """Elements of an integer, boolean or string output that differ."""
    elements: int
    limits: Limits
    exceeded: tuple[str, ...] = ()
    """One sentence for each limit that is exceeded."""
    unmeasured: int = 0
    """Elements that are NaN or infinite in the reference and in half alike: their accuracy is unknown."""
    agree: float | None = None
    """The share of equal elements; None for an output of floats."""
    steps: float | None = None
    """The largest difference of an element; None for an output that does not hold integers."""
    boxes: float | None = None
    """The share of boxes that changed; None for an output without boxes."""
    found: int | None = None
    """Number of a detector's boxes that were compared; None for other outputs."""
    changed: int = 0
    """Number of boxes that changed."""
    changes: tuple[BoxChange, ...] = ()
    """The boxes that appear, vanish or swap, including marginal ones; the first `MOST_CHANGES`."""

    def __bool__(self) -> bool:
        return not self.exceeded


@dataclass(frozen=True, slots=True)
class Comparison:
    """All outputs against their reference and budget; truthy when all are within it."""

    outputs: tuple[TensorDiff, ...]
    samples: int

    def __bool__(self) -> bool:
        return all(self.outputs)

    @property
    def worst(self) -> TensorDiff:
        """Return the output with the largest relative L2, or one with non-finite values if there is any."""
        return max(self.outputs, key=lambda diff: (diff.non_finite > 0, diff.relative_l2))

    @property
    def load(self) -> float:
        """Return the largest relative L2 of an output over its limit: 1 uses all of the budget; 0 without any limit on it."""
        loads = [diff.relative_l2 / limit for diff in self.outputs if (limit := diff.limits.relative_l2)]
        return max(loads, default=0.0)

    def unmeasured(self) -> list[str]:
        """Return one line for each output whose accuracy is unknown in part: non-finite in FP32 itself, or always empty."""
        without_boxes = any(diff.found == 0 for diff in self.outputs)  # its empty outputs are reported in one line
        return [
            f"`{diff.output}`: {diff.unmeasured:,} of {diff.elements:,} elements are NaN or infinite in FP32 itself"
            if diff.elements
            else f"`{diff.output}` is empty for every sample"
            for diff in self.outputs
            if diff.unmeasured or not (diff.elements or without_boxes)
        ] + [f"`{diff.output}` holds no box whose score counts" for diff in self.outputs if diff.found == 0]

    def boxes(self) -> list[str]:
        """Return one line for each detector: how many boxes changed, and which."""
        return [
            f"`{diff.output}`: {describe_changes(diff.changes, diff.found, diff.changed)}"
            for diff in self.outputs
            if diff.found
        ]

    def failures(self) -> list[str]:
        """Return one line for each limit that is exceeded, naming the output."""
        return [f"`{diff.output}`: {reason}" for diff in self.outputs for reason in diff.exceeded]


def compare(references: Sequence[Feeds], measured: Iterable[Feeds], budget: Budget) -> Comparison:
    """Compare the outputs of all samples. Samples may differ in shape: errors are summed before any division."""
    comparer = Comparer(budget)
    for want, got in zip(references, measured, strict=True):
        comparer.add(want, got)
    return comparer.result()


class Comparer:
    """Compares outputs sample by sample without keeping them. Owns the sums over the samples so far."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._outputs: dict[str, OutputSums] = {}
        self._samples = 0

    def add(self, reference: Feeds, measured: Feeds) -> dict[Detector, Matching]:
        """Add one sample; the first one determines the outputs that are compared. Return the matched boxes by detector."""
        if not self._samples:
            self._outputs = {name: OutputSums() for name in reference}
        self._samples += 1
        matched = {
            detector: match(detector, reference, measured, self._budget.limits(detector.boxes))
            for detector in self._budget.detectors
            if all(name in reference for name in detector.outputs)
        }
        by_rows = {name: found for detector, found in matched.items() for name in detector.rows}
        counts = {detector.count for detector in matched}
        for name, sums in self._outputs.items():
            if name in by_rows:
                sums.add_rows(reference[name], measured[name], by_rows[name])
            elif name not in counts:
                sums.add(reference[name], measured[name])
        for detector, found in matched.items():
            self._outputs[detector.boxes].add_boxes(found)
        return matched

    def merge(self, later: Comparer) -> None:
        """Add the samples of another comparer with the same budget, which saw later ones."""
        for name, sums in later._outputs.items():
            self._outputs.setdefault(name, OutputSums()).merge(sums)
        self._samples += later._samples

    def result(self) -> Comparison:
        """Return the comparison of all samples so far with the budget."""
        outputs = tuple(_diff(sums, name, self._budget.limits(name)) for name, sums in self._outputs.items())
        return Comparison(outputs, self._samples)


def relative_l2(reference: Array, measured: Array) -> float:
    """Return ||measured - reference|| / ||reference||; infinite when an element is finite in one of the two only."""
    sums = OutputSums()
    sums.add(reference, measured)
    return sums.relative_l2


def _diff(sums: OutputSums, output: str, limits: Limits) -> TensorDiff:
    """Return the metrics of an output, and which limits they exceed."""
    # Without a limit for them, integers that differ are as wrong as missing ones.
    as_number = limits.steps is not None and sums.steps is not None
    excused = as_number or limits.agree is not None
    mismatched = sums.mismatched + (0 if excused else sums.differing)
    error2, signal2 = (sums.steps2, sums.numbers2) if as_number else (sums.error2, sums.signal2)
    error2 = math.inf if sums.non_finite or mismatched else error2
    has_scores = sums.scores and sums.rows and (sums.axes < IMAGE_AXES or limits.top1 is not None)
    diff = TensorDiff(
        output=output,
        relative_l2=root_ratio(error2, signal2),
        max_abs=math.inf if sums.non_finite else (sums.steps or 0.0) if as_number else sums.max_abs,
        cosine=sums.cosine,
        top1=sums.same_top / sums.rows if has_scores else None,
        sqnr_db=_decibels(signal2, error2),
        non_finite=sums.non_finite,
        mismatched=mismatched,
        elements=sums.elements,
        limits=limits,
        unmeasured=sums.unmeasured,
        agree=1 - sums.differing / sums.whole if sums.whole else None,
        steps=sums.steps,
        boxes=sums.changed / sums.boxes if sums.boxes else None,
        found=sums.boxes,
        changed=sums.changed,
        changes=tuple(sums.changes),
    )
    return replace(diff, exceeded=_exceeded(diff))


def _decibels(signal2: float, error2: float) -> float:
    if error2 == 0:
        return math.inf
    return 10 * math.log10(signal2 / error2) if signal2 and math.isfinite(error2) else -math.inf


def _exceeded(diff: TensorDiff) -> tuple[str, ...]:
    """Return one sentence for each limit that is exceeded; a limit whose metric could not be measured is skipped."""
    found = []
    if diff.non_finite:
        found.append(f"{diff.non_finite:,} of {diff.elements:,} elements are NaN or infinite where FP32 is not")
    if diff.mismatched:
        found.append(f"{diff.mismatched:,} of {diff.elements:,} elements differ or have another shape")
    for metric, limit in diff.limits.items():
        value = getattr(diff, metric)
        if value is None or diff.mismatched:
            continue
        within = value >= limit if metric in AT_LEAST else value <= limit
        if not within:
            beyond = (
                f"{metric} is {value:.3g}, the budget is {'at least' if metric in AT_LEAST else 'at most'} {limit:g}"
            )
            found.append(
                beyond
                + (f": {describe_changes(diff.changes, diff.found or 0, diff.changed)}" if metric == "boxes" else "")
            )
    return tuple(found)
