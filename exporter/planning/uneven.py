"""Outputs whose measured error says little of other inputs: a few rows of the samples cause nearly all of it.

The probabilities of a classifier that is sure are right to many digits in half, and those of one that wavers are not.
Over the samples squared errors then span many orders of magnitude, and their mean is that of the one or two rows where
the model wavers: other inputs, of which fewer or more do, have another. No number of sure samples changes that.

How many rows a sum of squared errors e rests on is their effective number, (sum e)^2 / sum e^2 (Kish, "Survey Sampling",
1965): all of them where errors are alike, 1 where one is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from demi.tensors import Array, Feeds

FEWEST_ROWS = 8
"""With fewer rows nothing can be said of how they differ."""

FEW = 4.0
"""An error that rests on fewer rows than this may easily be two or three times another one for other inputs."""


@dataclass(frozen=True, slots=True)
class Uneven:
    """On how many rows of the samples the error of an output rests."""

    effective: float
    rows: int
    hardest: float
    """Relative L2 of a request like the hardest row, by the mean norm of all rows."""


def uneven_outputs(references: Sequence[Feeds], measured: Sequence[Feeds]) -> dict[str, Uneven]:
    """The outputs of floats, by name, whose error rests on fewer than `FEW` rows of many; rows are those of axis 0."""
    found = {}
    for name in references[0] if references else ():
        pairs = [(want[name], got[name]) for want, got in zip(references, measured, strict=True)]
        if any(want.dtype.kind != "f" or want.shape != got.shape for want, got in pairs):
            continue
        squares = np.concatenate([_squares(want, got) for want, got in pairs])
        total, rows = float(squares.sum()), len(squares)
        if rows < FEWEST_ROWS or not 0 < total < np.inf:
            continue
        shares = squares / total
        if (effective := 1 / float(shares @ shares)) < FEW:
            norm = sum(float(_squares(want, np.zeros_like(want)).sum()) for want, _ in pairs)
            found[name] = Uneven(effective, rows, float(np.sqrt(squares.max() * rows / norm)) if norm else np.inf)
    return found


def _squares(want: Array, got: Array) -> Array:
    """The squared error of each row, float64[rows]; what is not finite in FP32 counts nothing."""
    with np.errstate(invalid="ignore"):
        gap = np.where(np.isfinite(want), got.astype(np.float64) - want, 0.0)
    found: Array = np.square(np.atleast_1d(gap))
    return np.asarray(found.sum(axis=tuple(range(1, found.ndim))))


def in_words(uneven: Mapping[str, Uneven]) -> list[str]:
    """A line for each such output: what it means, and what helps."""
    return [
        f"`{name}`: about {max(1, round(found.effective))} of {found.rows} rows of the samples make nearly all of its "
        f"error; that of other inputs may be several times larger or smaller (a request like the hardest row alone: "
        f"{found.hardest:.2g}), and more samples like those rows narrow it"
        for name, found in uneven.items()
    ]
