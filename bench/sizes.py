"""Inputs of a bundle, cut or repeated to a length."""

from __future__ import annotations

import numpy as np

from demi.bundles.bundle import Bundle
from demi.tensors import Feeds


def with_length(bundle: Bundle, feeds: Feeds, length: int) -> Feeds:
    """Return the feeds with `length` elements along each padded axis, cut or repeated."""
    found = dict(feeds)
    for spec in bundle.manifest.inputs:
        for axis, name in enumerate(spec.shape):
            if name in bundle.manifest.batch.pad.axes:
                values = found[spec.name]
                found[spec.name] = np.ascontiguousarray(values.take(np.arange(length) % values.shape[axis], axis))
    return found
