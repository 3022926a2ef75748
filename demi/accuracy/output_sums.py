"""Sums over samples of one output, from which all of its metrics are computed."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from demi.accuracy.matching import BoxChange, Matching
from demi.tensors import Array

MOST_CHANGES = 100
"""Most changed boxes that are listed."""

SUMS = (
    "error2",
    "signal2",
    "rows",
    "same_top",
    "non_finite",
    "mismatched",
    "elements",
    "unmeasured",
    "whole",
    "differing",
    "steps2",
    "numbers2",
    "changed",
)
"""Fields of a pool that add up over samples."""


class OutputSums:
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

    def merge(self, later: OutputSums) -> None:
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.max_abs, self.axes = max(self.max_abs, later.max_abs), max(self.axes, later.axes)
        self.cosine = min(self.cosine, later.cosine)
        self.scores = self.scores and later.scores
        self.steps = _either(max, self.steps, later.steps)
        self.boxes = _either(operator.add, self.boxes, later.boxes)
        self.changes += later.changes[: MOST_CHANGES - len(self.changes)]

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
        with np.errstate(invalid="ignore", over="ignore"):
            error = got - want
            error2, signal2 = float(np.vdot(error, error)), float(np.vdot(want, want))
        if not math.isfinite(error2 + signal2):
            want, got = self._without_non_finite(want, got)
            error = got - want
            error2, signal2 = float(np.vdot(error, error)), float(np.vdot(want, want))
        self.error2 += error2
        self.signal2 += signal2
        self.max_abs = max(self.max_abs, float(error.max()), -float(error.min()))
        self._add_rows(want, got, error)

    def _without_non_finite(self, want: Array, got: Array) -> tuple[Array, Array]:
        """Count the non-finite elements and replace them by zeros in both.

        NaN for NaN, and infinity for the same infinity, is right; every other non-finite value is wrong.
        """
        same = (want == got) | (np.isnan(want) & np.isnan(got))
        finite = np.isfinite(want) & np.isfinite(got)
        self.non_finite += int(np.count_nonzero(~finite & ~same))
        self.unmeasured += int(np.count_nonzero(~finite & same))
        return np.where(finite, want, 0.0), np.where(finite, got, 0.0)

    def _add_rows(self, want: Array, got: Array, error: Array) -> None:
        if want.ndim == 0 or want.shape[-1] < 2:
            self.scores = False
            return
        self.axes = max(self.axes, want.ndim)
        want, got, error = (each.reshape(-1, want.shape[-1]) for each in (want, got, error))
        norms = np.sqrt(_dots(want, want) * _dots(got, got))
        cosines = np.divide(_dots(want, got), norms, out=np.zeros_like(norms), where=norms > 0)
        cosines[~error.any(axis=1)] = 1.0  # not 1 - 2e-16, and 1 for rows of zeros
        self.cosine = min(self.cosine, float(cosines.min()))
        self.rows += len(want)
        self.same_top += int(np.count_nonzero(want.argmax(axis=1) == got.argmax(axis=1)))

    @property
    def relative_l2(self) -> float:
        is_wrong = self.non_finite or self.mismatched or self.differing
        return root_ratio(math.inf if is_wrong else self.error2, self.signal2)


def root_ratio(error2: float, signal2: float) -> float:
    """Return the root of the ratio of two sums of squares: 0 without an error, infinite without a signal."""
    if error2 == 0 or math.isinf(error2):
        return error2
    return math.sqrt(error2 / signal2) if signal2 else math.inf


def _either(join: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
    """Return the two joined, or the one that is not None; None if both are."""
    return join(first, second) if first is not None and second is not None else second if first is None else first


def _dots(a: Array, b: Array) -> Array:
    """Return the dot product of each pair of rows."""
    found: Array = np.einsum("ij,ij->i", a, b)
    return found
