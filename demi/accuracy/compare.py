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

import numpy as np

from demi.accuracy.budget import AT_LEAST, Budget, Limits
from demi.accuracy.detector import Detector
from demi.accuracy.matching import BoxChange, Matching, describe_changes, match
from demi.tensors import Array, Feeds

IMAGE_AXES = 4
"""Axes of an output from which on its last one is taken for a width: [batch, classes, height, width]."""

MOST_CHANGES = 100
"""Most changed boxes that are listed."""


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
        self._pools: dict[str, _Pool] = {}
        self._samples = 0

    def add(self, reference: Feeds, measured: Feeds) -> dict[Detector, Matching]:
        """Add one sample; the first one determines the outputs that are compared. Return the matched boxes by detector."""
        if not self._samples:
            self._pools = {name: _Pool() for name in reference}
        self._samples += 1
        matched = {
            detector: match(detector, reference, measured, self._budget.limits(detector.boxes))
            for detector in self._budget.detectors
            if all(name in reference for name in detector.outputs)
        }
        by_rows = {name: found for detector, found in matched.items() for name in detector.rows}
        counts = {detector.count for detector in matched}
        for name, pool in self._pools.items():
            if name in by_rows:
                pool.add_rows(reference[name], measured[name], by_rows[name])
            elif name not in counts:
                pool.add(reference[name], measured[name])
        for detector, found in matched.items():
            self._pools[detector.boxes].add_boxes(found)
        return matched

    def result(self) -> Comparison:
        """Return the comparison of all samples so far with the budget."""
        outputs = tuple(pool.diff(name, self._budget.limits(name)) for name, pool in self._pools.items())
        return Comparison(outputs, self._samples)


def relative_l2(reference: Array, measured: Array) -> float:
    """Return ||measured - reference|| / ||reference||; infinite when an element is finite in one of the two only."""
    pool = _Pool()
    pool.add(reference, measured)
    return pool.relative_l2


class _Pool:
    """Sums over samples of one output, from which all of its metrics are computed."""

    def __init__(self) -> None:
        self.error2 = self.signal2 = self.max_abs = 0.0
        self.cosine = 1.0
        self.rows = self.same_top = 0
        self.non_finite = self.mismatched = self.elements = self.unmeasured = 0
        self.whole = self.differing = 0
        self.steps: float | None = None
        self.steps2 = self.numbers2 = 0.0
        self.boxes: int | None = None
        self.changed = 0
        self.changes: list[BoxChange] = []
        self.scores = True
        self.axes = 0

    def add(self, reference: Array, measured: Array) -> None:
        if reference.shape != measured.shape:
            self.elements += reference.size
            self.mismatched += reference.size
            self.error2, self.scores = math.inf, False
            return
        if not reference.size:  # an empty output is right, and adds nothing to the sums
            return
        self.elements += reference.size
        if reference.dtype.kind != "f":
            self.whole += reference.size
            self.differing += int(np.count_nonzero(reference != measured))
            self.scores = False
            if reference.dtype.kind in "iu":
                self._add_steps(reference.astype(np.float64), measured.astype(np.float64))
            return
        self._add_floats(reference.astype(np.float64), measured.astype(np.float64))

    def _add_steps(self, want: Array, got: Array) -> None:
        error = np.abs(got - want)
        self.steps = max(self.steps or 0.0, float(error.max(initial=0.0)))
        self.steps2 += float(np.sum(error * error))
        self.numbers2 += float(np.sum(want * want))

    def add_rows(self, reference: Array, measured: Array, matched: Matching) -> None:
        """Add one output of a detector: rows of boxes in both answers are compared, all rows are checked for finiteness."""
        if reference.dtype.kind == "f":
            self.non_finite += int(np.isfinite(reference).all() and np.count_nonzero(~np.isfinite(measured)))
        self.add(*matched.aligned(reference, measured))
        self.scores = False

    def add_boxes(self, matched: Matching) -> None:
        """Add the number of boxes and of changed boxes."""
        self.boxes = (self.boxes or 0) + matched.counted
        self.changed += matched.changed
        self.changes += matched.changes[: MOST_CHANGES - len(self.changes)]

    def _add_floats(self, want: Array, got: Array) -> None:
        # NaN for NaN, and infinity for the same infinity, is right; every other non-finite value is wrong.
        same = (want == got) | (np.isnan(want) & np.isnan(got))
        finite = np.isfinite(want) & np.isfinite(got)
        self.non_finite += int(np.count_nonzero(~finite & ~same))
        self.unmeasured += int(np.count_nonzero(~finite & same))
        want, got = np.where(finite, want, 0.0), np.where(finite, got, 0.0)
        error = got - want
        self.error2 += float(np.sum(error * error))
        self.signal2 += float(np.sum(want * want))
        self.max_abs = max(self.max_abs, float(np.max(np.abs(error), initial=0.0)))
        self._add_rows(want, got)

    def _add_rows(self, want: Array, got: Array) -> None:
        if want.ndim == 0 or want.shape[-1] < 2:
            self.scores = False
            return
        self.axes = max(self.axes, want.ndim)
        want, got = want.reshape(-1, want.shape[-1]), got.reshape(-1, got.shape[-1])
        if not len(want):
            return
        norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
        dots = np.sum(want * got, axis=1)
        cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
        cosines[np.all(want == got, axis=1)] = 1.0  # not 1 - 2e-16, and 1 for rows of zeros
        self.cosine = min(self.cosine, float(cosines.min()))
        self.rows += len(want)
        self.same_top += int(np.count_nonzero(want.argmax(axis=1) == got.argmax(axis=1)))

    @property
    def relative_l2(self) -> float:
        is_wrong = self.non_finite or self.mismatched or self.differing
        return _root_ratio(math.inf if is_wrong else self.error2, self.signal2)

    def diff(self, output: str, limits: Limits) -> TensorDiff:
        # Without a limit for them, integers that differ are as wrong as missing ones.
        as_number = limits.steps is not None and self.steps is not None
        excused = as_number or limits.agree is not None
        mismatched = self.mismatched + (0 if excused else self.differing)
        error2, signal2 = (self.steps2, self.numbers2) if as_number else (self.error2, self.signal2)
        error2 = math.inf if self.non_finite or mismatched else error2
        has_scores = self.scores and self.rows and (self.axes < IMAGE_AXES or limits.top1 is not None)
        diff = TensorDiff(
            output=output,
            relative_l2=_root_ratio(error2, signal2),
            max_abs=math.inf if self.non_finite else (self.steps or 0.0) if as_number else self.max_abs,
            cosine=self.cosine,
            top1=self.same_top / self.rows if has_scores else None,
            sqnr_db=_decibels(signal2, error2),
            non_finite=self.non_finite,
            mismatched=mismatched,
            elements=self.elements,
            limits=limits,
            unmeasured=self.unmeasured,
            agree=1 - self.differing / self.whole if self.whole else None,
            steps=self.steps,
            boxes=self.changed / self.boxes if self.boxes else None,
            found=self.boxes,
            changed=self.changed,
            changes=tuple(self.changes),
        )
        return replace(diff, exceeded=_exceeded(diff))


def _root_ratio(error2: float, signal2: float) -> float:
    if error2 == 0 or math.isinf(error2):
        return error2
    return math.sqrt(error2 / signal2) if signal2 else math.inf


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
