"""Read and write tensors as JSON: lists of numbers, booleans or strings, nested or flat."""

from __future__ import annotations

import base64
import contextlib
import itertools
import math
import struct
from typing import Any

import numpy as np

from demi.server.errors import RequestError
from demi.server.protocol.float_widths import narrow, to_readable
from demi.tensors import Array, DType

_ACCEPTED: dict[DType, frozenset[type]] = {
    dtype: frozenset({str} if dtype is DType.BYTES else {bool} if dtype is DType.BOOL else {int})
    for dtype in DType
    if not dtype.is_float
}
_NUMBERS = frozenset({int, float})
FORMATS = {DType.FP16: "e", DType.FP32: "f", DType.FP64: "d"}
"""Formats of `struct`, which rounds a list of numbers to these dtypes in an eighth of NumPy's time."""
_TYPE_NAMES: dict[type, str] = {
    str: "a string",
    bool: "a boolean",
    float: "a number with a fraction",
    int: "a whole number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def read_json(data: object, dtype: DType, shape: tuple[int, ...], name: str, *, checked: bool = False) -> Array:
    """Return the array in one input's `data`, checked against its datatype and shape; read-only for most float dtypes.

    `checked` data is a list of floats for a float dtype. BF16 becomes bits in uint16, and BYTES an object array of str. Raises RequestError, or TensorError for a value out of
    the range of a float dtype; both name the tensor.
    """
    flat = _flatten(data, shape, name)
    if not checked:
        _check_types(flat, dtype, name)
    if dtype.is_float:
        return _floats(flat, dtype, name).reshape(shape)
    if dtype is DType.BYTES:
        return _strings(flat, name).reshape(shape)
    if dtype is not DType.BOOL:
        _check_range(flat, dtype, name)
    return np.array(flat, dtype.numpy).reshape(shape)


def read_json_files(data: object, shape: tuple[int, ...], name: str) -> Array:
    """Return the contents of files in one input's `data`, where they are in base64. Raises RequestError."""
    texts = read_json(data, DType.BYTES, shape, name).ravel().tolist()
    result = np.empty(len(texts), np.object_)
    for index, text in enumerate(texts):
        try:
            result[index] = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise RequestError(
                f"element {index} of input `{name}` is not base64", hint="encode the file, or send it as binary data"
            ) from error
    return result.reshape(shape)


def write_json(values: Array, dtype: DType, name: str, *, refuse_non_finite: bool) -> Array | list[str]:
    """Return an output as a flat array that orjson can write: NaN and infinity as null, or refused with RequestError."""
    if dtype is DType.BYTES:
        return [_text(item, name) for item in values.ravel().tolist()]
    numbers = np.ascontiguousarray(to_readable(values, dtype)).ravel()
    if refuse_non_finite and dtype.is_float and not np.isfinite(numbers).all():
        raise RequestError(
            f"output `{name}` holds NaN or infinite values, which JSON cannot represent",
            hint="request binary output with the parameter binary_data",
        )
    return numbers


def _flatten(data: object, shape: tuple[int, ...], name: str) -> list[Any]:
    """Return the elements of `data` in row-major order; their number is checked before any array is allocated."""
    if not shape and not isinstance(data, list):
        return [data]  # a scalar may be sent without a list around it
    if not isinstance(data, list):
        raise RequestError(f"the data of input `{name}` is {_type_name(type(data))}, expected a list")
    flat = _unnest(data, shape, name) if len(shape) > 1 and data and type(data[0]) is list else data
    if len(flat) != (count := math.prod(shape)):
        raise RequestError(f"input `{name}` holds {len(flat)} elements, but its shape {list(shape)} has {count}")
    return flat


def _unnest(data: list[Any], shape: tuple[int, ...], name: str) -> list[Any]:
    if len(nested := _nesting(data)) != len(shape):
        raise RequestError(f"the data of input `{name}` is nested as {nested}, but its shape is {list(shape)}")
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        for row in level:
            if type(row) is not list or len(row) != size:
                found = f"{len(row)} elements" if type(row) is list else _type_name(type(row))
                raise RequestError(
                    f"the data of input `{name}` has {found} along axis {axis}, but its shape {list(shape)} has {size}"
                )
        level = list(itertools.chain.from_iterable(level))
    return level


def _nesting(data: Any) -> list[int]:
    """Return the lengths of the lists in nested data, following the first element of each."""
    lengths = []
    while type(data) is list:
        lengths.append(len(data))
        data = data[0] if data else None
    return lengths


def _check_types(flat: list[Any], dtype: DType, name: str) -> None:
    accepted = _NUMBERS if dtype.is_float else _ACCEPTED[dtype]
    if set(map(type, flat)) <= accepted:
        return
    index, wrong = next((i, item) for i, item in enumerate(flat) if type(item) not in accepted)
    raise RequestError(f"input `{name}` is {dtype.value}, but element {index} of its data is {_type_name(type(wrong))}")


def _check_range(flat: list[int], dtype: DType, name: str) -> None:
    # Older NumPy wraps around silently, and the error should show the number.
    limits = np.iinfo(dtype.numpy)
    for value in (min(flat), max(flat)) if flat else ():
        if not limits.min <= value <= limits.max:
            raise RequestError(f"input `{name}` holds {_short(value)}, which is out of range for {dtype.value}")


def _floats(flat: list[float], dtype: DType, name: str) -> Array:
    if dtype in FORMATS:
        with contextlib.suppress(OverflowError, struct.error):  # which `narrow` reports with the value
            return np.frombuffer(struct.pack(f"{len(flat)}{FORMATS[dtype]}", *flat), dtype.numpy)
    try:
        wide = np.array(flat, np.float64)
    except OverflowError as error:
        raise RequestError(f"input `{name}` holds a number out of range for {dtype.value}") from error
    return narrow(wide, dtype, name)


def _strings(flat: list[str], name: str) -> Array:
    try:
        "".join(flat).encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"input `{name}` holds text that is not valid Unicode") from error
    result = np.empty(len(flat), np.object_)
    result[:] = flat
    return result


def _text(item: object, name: str) -> str:
    try:
        return item.decode() if isinstance(item, bytes) else str(item)
    except UnicodeDecodeError as error:
        raise RequestError(
            f"output `{name}` holds bytes that are not UTF-8, which JSON cannot represent",
            hint="request binary output with the parameter binary_data",
        ) from error


def _type_name(kind: type) -> str:
    return _TYPE_NAMES.get(kind, kind.__name__)


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**40 else f"a number of {value.bit_length()} bits"
