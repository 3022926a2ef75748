"""Moving numbers between float widths without a finite value ever becoming an infinity."""

from __future__ import annotations

import numpy as np

from demi.errors import TensorError
from demi.float16 import BF16, from_half, to_half
from demi.tensors import Array, DType, TensorSpec


def narrow(values: Array, dtype: DType, name: str) -> Array:
    """Float `values` as `dtype`, BF16 as its bits; TensorError where a finite value does not fit."""
    with np.errstate(over="ignore", under="ignore"):
        result = to_half(values, BF16) if dtype is DType.BF16 else values.astype(dtype.numpy)
    result = result.reshape(values.shape)  # NumPy's helpers make one element of a scalar
    rounded = from_half(result, BF16) if dtype is DType.BF16 else result
    lost = np.isinf(rounded) & np.isfinite(values)
    if lost.any():
        largest = float(np.max(np.abs(values[lost])))
        raise TensorError(
            f"input `{name}` holds {largest:g}, beyond what {dtype.value} can hold",
            hint="send values within the range of the input's dtype",
        )
    return result


def as_declared(values: Array, sent: DType, spec: TensorSpec) -> Array:
    """An input as the model declares it: any float width is taken for a float input, everything else must agree.

    `sent` says what `values` hold, since BF16 travels as uint16. Raises TensorError.
    """
    if sent is spec.dtype:
        return values
    if not (sent.is_float and spec.dtype.is_float):
        raise TensorError(f"input `{spec.name}` has datatype {sent.value}, expected {spec.dtype.value}")
    return narrow(readable(values, sent), spec.dtype, spec.name)


def readable(values: Array, dtype: DType) -> Array:
    """`values` as numbers that NumPy understands: BF16 bits become the float32 they stand for."""
    return from_half(values, BF16) if dtype is DType.BF16 else values
