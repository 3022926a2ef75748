"""Estimate the memory that a message takes once parsed, from its bytes alone, before protobuf parses them.

An entry of a repeated message is two bytes on the wire and hundreds in memory, and gzip compresses millions of them well.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from demi.server.errors import RequestError
from demi.server.protocol.json_size import too_heavy

MESSAGE, FIELD, NUMBER = 512, 128, 40
"""Bytes of memory for a message and what Demi creates for it, for any other field, and for a number in a packed field."""

_MOST_PER_BYTE = MESSAGE // 2
_MAX_DEPTH = 100
"""Protobuf's own limit on nesting."""

_VARINT, _FIXED64, _BYTES, _START, _END, _FIXED32 = range(6)
_WIDTH = {_FIXED64: 8, _FIXED32: 4}
_FIXED_TYPES = {
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
}
_WHOLE = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of a message type that may hold many values, by field number.

    `messages` maps to the descriptors of message fields, `packed` to the bytes per number, 0 for varints.
    """

    messages: dict[int, Any]
    packed: dict[int, int]


def check_weight(data: bytes, kind: type[Message], most: int) -> None:
    """Raise BodyTooLargeError if the message in `data` could take more than `most` bytes in memory.

    Strings and raw tensors do not count, since they take as many bytes as on the wire. Short messages are not scanned, since
    they cannot exceed the limit. Raises RequestError for bytes that are not a message.
    """
    if len(data) * _MOST_PER_BYTE > most and weigh(data, kind, most) > most:
        raise too_heavy(most)


def weigh(data: bytes, kind: type[Message], most: int) -> int:
    """Estimate the bytes of memory for the message in `data`; stops counting above `most`."""
    weight = MESSAGE
    parts = [(0, len(data), shape_of(kind.DESCRIPTOR))]
    try:
        while parts and weight <= most:
            if len(parts) > _MAX_DEPTH:
                raise RequestError("the message is nested too deeply")
            at, end, shape = parts.pop()
            while at < end and weight <= most:
                key = data[at]
                at += 1
                if key > 127:
                    key, at = _varint(data, at - 1)
                wire = key & 7
                weight += FIELD
                if wire == _BYTES:
                    size = data[at]
                    at += 1
                    if size > 127:
                        size, at = _varint(data, at - 1)
                    start, at = at, at + size
                    if at > end:
                        raise IndexError
                    number = key >> 3
                    if number in shape.messages:
                        weight += MESSAGE - FIELD
                        if not size:
                            continue
                        parts += [(at, end, shape), (start, at, shape_of(shape.messages[number]))]
                        break
                    if number in shape.packed:
                        weight += NUMBER * _count(data, start, size, shape.packed[number])
                elif wire == _VARINT:
                    while data[at] > 127:
                        at += 1
                    at += 1
                elif wire in _WIDTH:
                    at += _WIDTH[wire]
                elif wire > _FIXED32:
                    raise IndexError
    except IndexError:
        raise RequestError(
            f"the message is not a valid {kind.DESCRIPTOR.full_name}: it is truncated or damaged"
        ) from None
    return weight


@functools.cache
def shape_of(kind: Any) -> Shape:
    """Return the fields of a message type that may hold many values."""
    fields = kind.fields
    return Shape(
        {field.number: field.message_type for field in fields if field.message_type is not None},
        {
            field.number: _FIXED_TYPES.get(field.type, 0)
            for field in fields
            if field.message_type is None and field.type not in _WHOLE
        },
    )


def _count(data: bytes, start: int, size: int, width: int) -> int:
    """Count the packed numbers in `size` bytes; each varint ends with a byte below 128."""
    if width:
        return size // width
    return int(np.count_nonzero(np.frombuffer(data, np.uint8, size, start) < 128))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at `at` and the position after it; IndexError if it does not end."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError
