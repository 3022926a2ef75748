"""A measure: one figure of a model, and what each sample contributes to it.

Every figure here is a formula of sums over samples: relative L2 is the root of summed squared errors over summed squared
signals, top-1 is summed hits over summed labels, F1 follows from summed counts. So a bootstrap needs the samples' rows
of numbers and never the model, and two runs can be compared sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from demi.tensors import Array

MOST_NUMBERS = 50_000
"""How many numbers of all rows are kept: they bound the baseline's file and the bootstrap's time."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a model: its value over all samples, and the rows it follows from, for comparing in pairs."""

    name: str
    """`relative_l2`, `top1`, `model_bytes`, ..."""
    value: float
    formula: str | None = None
    """Its formula in `FORMULAS`; None for a figure that no samples stand behind."""
    rows: Array | None = None
    """float64 `[samples, numbers]`, at most `MOST_NUMBERS`; evenly thinned where there are more."""
    higher_is_better: bool = False
    output: str | None = None
    """The output it is about, when it is about one."""

    def __str__(self) -> str:
        return f"{self.name} of `{self.output}`" if self.output is not None else self.name

    @property
    def key(self) -> tuple[str, str | None]:
        """What finds the same measure in another run."""
        return self.name, self.output

    def worse_than(self, other: float) -> float:
        """By how much this value is worse than another; negative when it is better."""
        return (other - self.value) if self.higher_is_better else (self.value - other)


def measure_of(
    name: str, formula: str, rows: Array, *, higher_is_better: bool = False, output: str | None = None
) -> Measure:
    """The measure of a formula over the rows of all samples."""
    value = float(FORMULAS[formula](rows.sum(axis=0, dtype=np.float64)))
    return Measure(name, value, formula, thin(rows), higher_is_better, output)


def figure(value: float) -> str:
    """A measured value for people: from a thousand on whole, anything smaller with five digits."""
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.5g}"


def thin(rows: Array) -> Array:
    """Evenly spread rows, at most `MOST_NUMBERS` numbers; which ones depends on the shape alone, so pairs stay pairs."""
    keep = max(2, MOST_NUMBERS // max(rows.shape[1], 1))
    if len(rows) > keep:
        rows = rows[np.linspace(0, len(rows) - 1, keep).astype(np.int64)]
    return rows.astype(np.float64)


def _ratio(sums: Array) -> Array:
    """Sum of the first column over the sum of the second."""
    return _divide(sums[..., 0], sums[..., 1])


def _root_ratio(sums: Array) -> Array:
    """||error|| / ||signal|| from squares: 0 without an error, infinite for an error where no signal is."""
    error, signal = sums[..., 0], sums[..., 1]
    quotient = np.divide(error, signal, out=np.full_like(error, np.inf), where=signal > 0)
    root: Array = np.sqrt(np.where(error == 0, 0.0, quotient))
    return root


def _f1(sums: Array) -> Array:
    """The mean of 2 tp / (predicted + actual) over the classes that occur; columns are tp, predicted, actual by class."""
    hits, predicted, actual = np.split(sums, 3, axis=-1)
    return _mean_of_present(2 * hits, predicted + actual)


def _iou(sums: Array) -> Array:
    """The mean of tp / (predicted + actual - tp) over the classes that occur; columns as for F1."""
    hits, predicted, actual = np.split(sums, 3, axis=-1)
    return _mean_of_present(hits, predicted + actual - hits)


def _correlation(sums: Array) -> Array:
    """Pearson's r from the sums of 1, x, y, xx, yy, xy; of ranks, that is Spearman's rho."""
    n, x, y, xx, yy, xy = (sums[..., column] for column in range(6))
    spread = (n * xx - x * x) * (n * yy - y * y)
    return _divide(n * xy - x * y, np.sqrt(np.maximum(spread, 0.0)))


def _mean_of_present(part: Array, whole: Array) -> Array:
    present = whole > 0
    quotients = np.divide(part, whole, out=np.zeros_like(whole), where=present)
    return _divide(quotients.sum(axis=-1), present.sum(axis=-1).astype(np.float64))


def _divide(part: Array, whole: Array) -> Array:
    """A quotient that is NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


FORMULAS: dict[str, Callable[[Array], Array]] = {
    "ratio": _ratio,
    "root_ratio": _root_ratio,
    "f1": _f1,
    "iou": _iou,
    "correlation": _correlation,
}
"""Each takes sums `[..., numbers]` over samples, and answers with one figure for each."""
