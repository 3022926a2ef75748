"""A measure: one figure of a model, with the contribution of each sample.

Every figure is a formula of sums over samples: relative L2 is the root of summed squared errors over summed squared
signals, top-1 is summed hits over summed labels, F1 follows from summed counts. Therefore a bootstrap needs only the
samples' rows of numbers, not the model, and two runs can be compared sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from demi.tensors import Array

MOST_NUMBERS = 50_000
"""Most numbers kept in the rows of one measure: bounds the size of a baseline file and the time of the bootstrap."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a model: its value over all samples, and the per-sample rows for paired comparison."""

    name: str
    """`relative_l2`, `top1`, `model_bytes`, ..."""
    value: float
    formula: str | None = None
    """Key in `FORMULAS`; None for a figure that does not depend on samples."""
    rows: Array | None = None
    """float64 `[samples, numbers]`; with more than `MOST_NUMBERS` numbers, an even selection of samples."""
    higher_is_better: bool = False
    output: str | None = None
    """The output that it measures; None for a figure of the whole model."""

    def __str__(self) -> str:
        return f"{self.name} of `{self.output}`" if self.output is not None else self.name

    @property
    def key(self) -> tuple[str, str | None]:
        """Return the key that identifies the same measure in another run: its name and output."""
        return self.name, self.output

    def worse_than(self, other: float) -> float:
        """Return how much worse this value is than another; negative when it is better."""
        return (other - self.value) if self.higher_is_better else (self.value - other)


def measure_of(
    name: str, formula: str, rows: Array, *, higher_is_better: bool = False, output: str | None = None
) -> Measure:
    """Return the measure of a formula over the rows `[samples, numbers]`."""
    value = float(FORMULAS[formula](rows.sum(axis=0, dtype=np.float64)))
    return Measure(name, value, formula, thin(rows), higher_is_better, output)


def figure(value: float) -> str:
    """Format a value: whole from a thousand on, smaller ones with five digits."""
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.5g}"


def thin(rows: Array) -> Array:
    """Select evenly spread rows, at most `MOST_NUMBERS` numbers. The choice depends on the shape alone: pairs stay pairs."""
    keep = max(2, MOST_NUMBERS // max(rows.shape[1], 1))
    if len(rows) > keep:
        rows = rows[np.linspace(0, len(rows) - 1, keep).astype(np.int64)]
    return rows.astype(np.float64)


def _ratio(sums: Array) -> Array:
    """Return the sum of the first column over the sum of the second."""
    return _divide(sums[..., 0], sums[..., 1])


def _root_ratio(sums: Array) -> Array:
    """Return ||error|| / ||signal|| from squares: 0 without an error, infinite for an error without a signal."""
    error, signal = sums[..., 0], sums[..., 1]
    quotient = np.divide(error, signal, out=np.full_like(error, np.inf), where=signal > 0)
    root: Array = np.sqrt(np.where(error == 0, 0.0, quotient))
    return root


def _f1(sums: Array) -> Array:
    """Return the mean of 2 tp / (predicted + actual) over the classes that occur; columns: tp, predicted, actual."""
    hits, predicted, actual = np.split(sums, 3, axis=-1)
    return _mean_of_present(2 * hits, predicted + actual)


def _iou(sums: Array) -> Array:
    """Return the mean of tp / (predicted + actual - tp) over the classes that occur; columns as for F1."""
    hits, predicted, actual = np.split(sums, 3, axis=-1)
    return _mean_of_present(hits, predicted + actual - hits)


def _correlation(sums: Array) -> Array:
    """Return Pearson's r from the sums of 1, x, y, xx, yy, xy; on ranks it is Spearman's rho."""
    n, x, y, xx, yy, xy = (sums[..., column] for column in range(6))
    spread = (n * xx - x * x) * (n * yy - y * y)
    return _divide(n * xy - x * y, np.sqrt(np.maximum(spread, 0.0)))


def _mean_of_present(part: Array, whole: Array) -> Array:
    present = whole > 0
    quotients = np.divide(part, whole, out=np.zeros_like(whole), where=present)
    return _divide(quotients.sum(axis=-1), present.sum(axis=-1).astype(np.float64))


def _divide(part: Array, whole: Array) -> Array:
    """Return the quotient, NaN where the divisor is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


FORMULAS: dict[str, Callable[[Array], Array]] = {
    "ratio": _ratio,
    "root_ratio": _root_ratio,
    "f1": _f1,
    "iou": _iou,
    "correlation": _correlation,
}
"""Functions from sums over samples, `[..., numbers]`, to figures, `[...]`."""
