"""Encode and decode tensors as bytes: little-endian, row-major; each BYTES element is preceded by its length.

All machines that ONNX Runtime supports are little-endian, so no bytes are swapped.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from demi.server.errors import RequestError
from demi.tensors import Array, DType

_LENGTH = struct.Struct("<I")


def read_binary(data: memoryview, dtype: DType, shape: tuple[int, ...], name: str, *, files: bool = False) -> Array:
    """Return one input as a read-only array over its bytes, without a copy and usually unaligned.

    BYTES are text, or with `files` the contents of files.

    Alignment would need a copy here; batching copies anyway, in another thread, where NumPy releases the GIL.

    Raises RequestError, naming the tensor, if the number of bytes does not match datatype and shape.
    """
    count = math.prod(shape)
    if dtype is DType.BYTES:
        return _read_strings(data, count, name, files=files).reshape(shape)
    if len(data) != (wanted := count * dtype.numpy.itemsize):
        raise RequestError(
            f"input `{name}` has {len(data)} bytes, but {dtype.value} of shape {list(shape)} needs {wanted}"
        )
    if dtype is DType.BOOL and np.any(np.frombuffer(data, np.uint8) > 1):
        raise RequestError(f"input `{name}` is BOOL, but holds bytes other than 0 and 1")
    return np.frombuffer(data, dtype.numpy).reshape(shape)


def write_binary(values: Array, dtype: DType) -> bytes:
    """Encode one output as bytes."""
    if dtype is DType.BYTES:
        items = (item if isinstance(item, bytes) else str(item).encode() for item in values.ravel().tolist())
        return b"".join(_LENGTH.pack(len(item)) + item for item in items)
    return values.tobytes()


def _read_strings(data: memoryview, count: int, name: str, *, files: bool) -> Array:
    # Each element needs at least four bytes for its length: allocate nothing for a count that cannot fit.
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
        result[index] = bytes(data[start:at]) if files else decode_text(data[start:at], name)
    if at != len(data):
        raise RequestError(f"input `{name}` has {len(data) - at} extra bytes after its {count} elements")
    return result


def decode_text(data: memoryview, name: str) -> str:
    """Decode one BYTES element as text, which ONNX strings require; RequestError if it is not UTF-8."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"input `{name}` holds bytes that are not UTF-8 text") from error


def _truncated(name: str, index: int) -> RequestError:
    return RequestError(f"input `{name}` is truncated in BYTES element {index}")
