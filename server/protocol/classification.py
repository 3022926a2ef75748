"""The classification extension: return only the largest elements of an output, each as `"value:index"`."""

from __future__ import annotations

import math

import numpy as np

from demi.server.errors import RequestError
from demi.server.protocol.float_widths import to_readable
from demi.tensors import Array, DType, TensorSpec


def classify(values: Array, spec: TensorSpec, classes: int, *, rows: bool) -> Array:
    """Return the `classes` largest elements, largest first, as an object array of `"value:index"` strings.

    With `rows`, axis 0 is the batch and the result has shape [rows, k]; otherwise [k]. Ties keep the order of their
    indices, and NaN sorts last. Raises RequestError for an output of strings.
    """
    if spec.dtype is DType.BYTES:
        raise RequestError(f"output `{spec.name}` holds strings, which cannot be ranked")
    numbers = to_readable(values, spec.dtype)
    table = numbers.reshape((numbers.shape[0], math.prod(numbers.shape[1:])) if rows else (1, numbers.size))
    wanted = min(classes, table.shape[1])
    labels = np.empty((table.shape[0], wanted), np.object_)
    for row, scores in enumerate(table):
        # Negate as floats or Python integers: unsigned and boolean dtypes cannot hold negative values.
        keys = -scores.astype(np.float64 if spec.dtype.is_float else object)
        best = np.argsort(keys, kind="stable")[:wanted]
        labels[row] = [f"{float(scores[index]):f}:{index}" for index in best]
    return labels if rows else labels.reshape(-1)
