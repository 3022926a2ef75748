"""Per-sample rows of a detector's measures: errors of matched boxes, and boxes that changed."""

from __future__ import annotations

import numpy as np

from demi.accuracy.matching import Matching
from demi.tensors import Array


def matched_error_rows(want: Array, got: Array, matched: Matching, samples: int) -> Array:
    """Return `[samples, 2]`: squared error and squared signal of each sample, over the boxes in both answers."""
    if not np.isfinite(got).all() and np.isfinite(want).all():
        return np.tile([np.inf, 0.0], (samples, 1))
    reference, measured = (array.astype(np.float64) for array in matched.aligned(want, got))
    columns = [np.square(measured - reference).sum(axis=1), np.square(reference).sum(axis=1)]
    owners = _samples_of(matched.images, samples)
    return np.stack([np.bincount(owners, column, samples) for column in columns], axis=1)


def box_rows(matched: Matching, samples: int) -> Array:
    """Return `[samples, 2]`: how many boxes of each sample changed, and how many there are."""
    counted = [change.image for change in matched.changes if not change.marginal]
    changed = np.bincount(_samples_of(np.array(counted, np.int64), samples), minlength=samples)
    kept = np.bincount(_samples_of(matched.images, samples), minlength=samples)
    return np.stack([changed, changed + kept], axis=1).astype(np.float64)


def _samples_of(images: Array, samples: int) -> Array:
    """Return the sample of each image; where there are more images than samples, the first sample for all."""
    return images if not len(images) or images.max() < samples else np.zeros_like(images)
