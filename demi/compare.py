"""Comparing a model's outputs with their FP32 reference: pure NumPy.

A Comparison is truthy when every output is within its limits and nothing became non-finite. For reference y and
measured z, in float64:

- relative L2: ||z - y||_2 / ||y||_2
- max abs: max |z - y|
- cosine: the smallest cosine similarity of a row (last axis) of z with its row of y
- SQNR: 10 log10(||y||^2 / ||z - y||^2), in dB
- top-1: the share of rows whose largest element is the same
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from demi.budget import AT_LEAST, Budget, Limits
from demi.tensors import Array, Feeds


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """How far one output is from its reference, over all samples."""

    output: str
    relative_l2: float
    max_abs: float
    cosine: float
    top1: float | None
    """None for an output that is no table of scores (integers, or rows of one element)."""
    sqnr_db: float
    non_finite: int
    """Elements that are NaN or infinite where the reference is finite, or the other way round."""
    mismatched: int
    """Elements of an integer, boolean or string output that differ."""
    elements: int
    limits: Limits
    exceeded: tuple[str, ...] = ()
    """What is beyond its limit, in words."""
    unmeasured: int = 0
    """Elements where the reference itself is NaN or infinite, and half likewise: nothing is known of their accuracy."""

    def __bool__(self) -> bool:
        return not self.exceeded


@dataclass(frozen=True, slots=True)
class Comparison:
    """All outputs against their reference and budget; truthy when all are within."""

    outputs: tuple[TensorDiff, ...]
    samples: int

    def __bool__(self) -> bool:
        return all(self.outputs)

    @property
    def worst(self) -> TensorDiff:
        """The output with the largest relative error (non-finite first)."""
        return max(self.outputs, key=lambda diff: (diff.non_finite > 0, diff.relative_l2))

    def unmeasured(self) -> list[str]:
        """One line for each output that FP32 itself answers with NaN or infinity somewhere, or never with an element."""
        return [
            f"`{diff.output}`: {diff.unmeasured:,} of {diff.elements:,} elements are NaN or infinite in FP32 itself"
            if diff.elements
            else f"`{diff.output}` is empty for every sample"
            for diff in self.outputs
            if diff.unmeasured or not diff.elements
        ]

    def failures(self) -> list[str]:
        """One line for each limit that is exceeded, naming the output."""
        return [f"`{diff.output}`: {reason}" for diff in self.outputs for reason in diff.exceeded]


def compare(references: Sequence[Feeds], measured: Iterable[Feeds], budget: Budget) -> Comparison:
    """Compare each sample's outputs; samples may differ in shape, their errors are pooled before any division."""
    comparing = Comparing()
    for want, got in zip(references, measured, strict=True):
        comparing.add(want, got)
    return comparing.result(budget)


class Comparing:
    """A comparison that grows sample by sample, so that no output has to be kept. Owns the sums over what it has seen."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}
        self._samples = 0

    def add(self, reference: Feeds, measured: Feeds) -> None:
        """Take in one sample's outputs; the first says which outputs there are."""
        if not self._samples:
            self._pools = {name: _Pool() for name in reference}
        self._samples += 1
        for name, pool in self._pools.items():
            pool.add(reference[name], measured[name])

    def result(self, budget: Budget) -> Comparison:
        """All outputs seen so far against a budget."""
        outputs = tuple(pool.diff(name, budget.limits(name)) for name, pool in self._pools.items())
        return Comparison(outputs, self._samples)


def relative_l2(reference: Array, measured: Array) -> float:
    """||measured - reference|| / ||reference||; infinite when only one of the two is finite somewhere."""
    pool = _Pool()
    pool.add(reference, measured)
    return pool.relative_l2


class _Pool:
    """Sums over samples from which every figure follows."""

    def __init__(self) -> None:
        self.error2 = self.signal2 = self.max_abs = 0.0
        self.cosine = 1.0
        self.rows = self.same_top = 0
        self.non_finite = self.mismatched = self.elements = self.unmeasured = 0
        self.scores = True

    def add(self, reference: Array, measured: Array) -> None:
        if reference.shape != measured.shape:
            self.elements += reference.size
            self.mismatched += reference.size
            self.error2, self.scores = math.inf, False
            return
        if not reference.size:  # an answer without elements is right, and says nothing of the others
            return
        self.elements += reference.size
        if reference.dtype.kind != "f":
            self.mismatched += int(np.count_nonzero(reference != measured))
            self.scores = False
            return
        self._add_floats(reference.astype(np.float64), measured.astype(np.float64))

    def _add_floats(self, want: Array, got: Array) -> None:
        # A NaN for a NaN and an infinity for the same infinity are right; anything else non-finite is not.
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
        if self.non_finite or self.mismatched:
            return math.inf
        if self.error2 == 0:
            return 0.0
        return math.sqrt(self.error2 / self.signal2) if self.signal2 else math.inf

    def diff(self, output: str, limits: Limits) -> TensorDiff:
        error2 = math.inf if self.non_finite or self.mismatched else self.error2
        diff = TensorDiff(
            output=output,
            relative_l2=self.relative_l2,
            max_abs=math.inf if self.non_finite else self.max_abs,
            cosine=self.cosine,
            top1=self.same_top / self.rows if self.scores and self.rows else None,
            sqnr_db=_decibels(self.signal2, error2),
            non_finite=self.non_finite,
            mismatched=self.mismatched,
            elements=self.elements,
            limits=limits,
            unmeasured=self.unmeasured,
        )
        return TensorDiff(
            **{name: getattr(diff, name) for name in TensorDiff.__slots__} | {"exceeded": _exceeded(diff)}
        )


def _decibels(signal2: float, error2: float) -> float:
    if error2 == 0:
        return math.inf
    return 10 * math.log10(signal2 / error2) if signal2 and math.isfinite(error2) else -math.inf


def _exceeded(diff: TensorDiff) -> tuple[str, ...]:
    """What is beyond its limit. An output of integers must be equal; a limit that cannot be measured is skipped."""
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
            found.append(
                f"{metric} is {value:.3g}, the budget is {'at least' if metric in AT_LEAST else 'at most'} {limit:g}"
            )
    return tuple(found)
