"""Convert between float widths; finite values never become infinite."""

from __future__ import annotations

import numpy as np

from demi.errors import TensorError
from demi.float16 import BF16, from_half, to_half
from demi.tensors import Array, DType, TensorSpec


def narrow(values: Array, dtype: DType, name: str) -> Array:
    """Convert float `values` to `dtype` (BF16 as its bits in uint16); TensorError if a finite value would overflow."""
    with np.errstate(over="ignore", under="ignore"):
        result = to_half(values, BF16) if dtype is DType.BF16 else values.astype(dtype.numpy)
    result = result.reshape(values.shape)  # the helpers turn a scalar into shape [1]
    rounded = from_half(result, BF16) if dtype is DType.BF16 else result
    overflowed = np.isinf(rounded) & np.isfinite(values)
    if overflowed.any():
        largest = float(np.max(np.abs(values[overflowed])))
        raise TensorError(
            f"input `{name}` holds {largest:g}, which is out of range for {dtype.value}",
            hint="send values within the range of the input's dtype",
        )
    return result


def as_declared(values: Array, sent: DType, spec: TensorSpec) -> Array:
    """Convert an input to the dtype that the model declares: any float width is accepted for a float input, nothing else.

    `sent` is the datatype of `values`, since BF16 arrives as uint16. Raises TensorError.
    """
    if sent is spec.dtype:
        return values
    if not (sent.is_float and spec.dtype.is_float):
        raise TensorError(f"input `{spec.name}` has datatype {sent.value}, expected {spec.dtype.value}")
    return narrow(to_readable(values, sent), spec.dtype, spec.name)


def to_readable(values: Array, dtype: DType) -> Array:
    """Return `values` in a dtype that NumPy supports: BF16 bits become float32."""
    return from_half(values, BF16) if dtype is DType.BF16 else values
