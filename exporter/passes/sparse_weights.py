"""Write sparse weights out: planning, lowering and half know dense ones only."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from demi.errors import ConversionError

MOST_BYTES = 1 << 31
"""Bytes of a dense weight, above which it is refused: a small file may declare any size."""


def with_dense_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without sparse initializers; `proto` itself if it has none.

    Those in bodies of If, Loop and Scan stay. Raises ConversionError for one that is malformed or too large.
    """
    if not proto.graph.sparse_initializer:
        return proto
    dense = onnx.ModelProto()
    dense.CopyFrom(proto)
    for sparse in proto.graph.sparse_initializer:
        dense.graph.initializer.append(_dense(sparse))
    dense.graph.ClearField("sparse_initializer")
    return dense


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Return the tensor; its indices count elements, or are one row of coordinates for each value."""
    name, shape = sparse.values.name, tuple(sparse.dims)
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        if math.prod(shape) * values.itemsize > MOST_BYTES:
            raise ValueError(f"it has {math.prod(shape):,} elements when it is written out")
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), shape)
        found = np.zeros(math.prod(shape), values.dtype)
        found[indices] = values
    except (ValueError, IndexError) as error:
        why = f"the sparse weight `{name}` cannot be read: {error}"
        raise ConversionError(why, hint="store it as a dense initializer") from None
    return numpy_helper.from_array(found.reshape(shape), name)
