"""bfloat16 through ONNX Runtime's Python interface on a CPU: passed as bits in uint16, since NumPy has no bfloat16."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from demi.tensors import Array, DType, Feeds, TensorSpec


def has_bits(specs: Sequence[TensorSpec]) -> bool:
    """Return whether any tensor is bfloat16."""
    return any(spec.dtype is DType.BF16 for spec in specs)


def run_bits(
    ort: Any, session: Any, inputs: Sequence[TensorSpec], feeds: Feeds, names: Sequence[str], options: Any = None
) -> list[Array]:
    """Run a session with bfloat16 inputs or outputs, passed as uint16, and return the outputs called `names`.

    `options` are the runtime's `RunOptions`.
    """
    types = {spec.name: spec.dtype for spec in inputs}
    values = {name: _value(ort, array, types.get(name)) for name, array in feeds.items()}
    return [_array(value) for value in session.run_with_ort_values(list(names), values, options)]


def _value(ort: Any, array: Array, dtype: DType | None) -> Any:
    if dtype is DType.BF16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), dtype.onnx)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _array(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, np.uint16)
    held = bytes((ctypes.c_char * (2 * count)).from_address(value.data_ptr()))  # a copy: `value` owns the memory
    return np.frombuffer(bytearray(held), np.uint16).reshape(shape)
