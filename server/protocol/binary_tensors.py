"""Tensors as bytes: little-endian elements in row-major order; BYTES elements each behind their length.

NumPy's own byte order is the wire's on every machine that ONNX Runtime runs on.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from demi.server.errors import RequestError
from demi.tensors import Array, DType

_LENGTH = struct.Struct("<I")


def read_binary(data: memoryview, dtype: DType, shape: tuple[int, ...], name: str) -> Array:
    """The array that one input's bytes hold, read-only, without a copy, and mostly not aligned.

    Where tensors begin follows from the length of the JSON before them. Joining them into a batch copies them anyway,
    and belongs to another thread than reading: NumPy lets go of the interpreter for each copy.

    Raises RequestError, which names the tensor, unless the bytes are exactly what datatype and shape need.
    """
    count = math.prod(shape)
    if dtype is DType.BYTES:
        return _read_strings(data, count, name).reshape(shape)
    if len(data) != (wanted := count * dtype.numpy.itemsize):
        raise RequestError(
            f"input `{name}` has {len(data)} bytes, but {dtype.value} of shape {list(shape)} needs {wanted}"
        )
    if dtype is DType.BOOL and np.any(np.frombuffer(data, np.uint8) > 1):
        raise RequestError(f"input `{name}` is BOOL, but holds bytes other than 0 and 1")
    return np.frombuffer(data, dtype.numpy).reshape(shape)


def write_binary(values: Array, dtype: DType) -> bytes:
    """The bytes of one output."""
    if dtype is DType.BYTES:
        items = (item if isinstance(item, bytes) else str(item).encode() for item in values.ravel().tolist())
        return b"".join(_LENGTH.pack(len(item)) + item for item in items)
    return values.tobytes()


def _read_strings(data: memoryview, count: int, name: str) -> Array:
    # Each element takes at least its four bytes of length: nothing is made for a count the data cannot hold.
    if count * _LENGTH.size > len(data):
        raise RequestError(f"input `{name}` has {len(data)} bytes, too few for {count} elements of BYTES")
    result = np.empty(count, np.object_)
    at = 0
    for index in range(count):
        start = at + _LENGTH.size
        if start > len(data):
            raise _truncated(name, index)
        at = start + _LENGTH.unpack_from(data, at)[0]
        if at > len(data):
            raise _truncated(name, index)
        result[index] = decode_text(data[start:at], name)
    if at != len(data):
        raise RequestError(f"input `{name}` has {len(data) - at} bytes left over after its {count} elements")
    return result


def decode_text(data: memoryview, name: str) -> str:
    """One BYTES element as text, which is what ONNX strings hold; RequestError where it is not UTF-8."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"input `{name}` holds bytes that are not UTF-8 text") from error


def _truncated(name: str, index: int) -> RequestError:
    return RequestError(f"input `{name}` is cut off in element {index} of its BYTES")
