"""A serialized ONNX model, read field by field: a server has no package that knows ONNX."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

GRAPH, NODE = 7, 1
"""Numbers of the fields of ModelProto and GraphProto in onnx.proto."""

FIXED = {1: 8, 5: 4}
"""Bytes of the kinds of numbers that are always as long."""


class GroupError(ValueError):
    """A message holds a group, which no model has: protobuf would pass over it and read on, and this reader cannot."""


def view(model: Path | bytes) -> memoryview:
    """The bytes of a model; those of a file are not read before they are looked at: weights are passed over."""
    if isinstance(model, bytes):
        return memoryview(model)
    with model.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def text(value: memoryview) -> str:
    """A text in a message; ONNX lets it be any bytes."""
    return bytes(value).decode(errors="backslashreplace")


def fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Every field of that number of a protobuf message; all that are wanted here have a length before them.

    Raises ValueError or IndexError for bytes that are no message, GroupError for one that protobuf can read.
    """
    for number, value in _walk(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def numbers(message: memoryview, wanted: int) -> Iterator[int]:
    """Every integer of that number of field, packed into one field or not. Raises as `fields` does."""
    for number, value in _walk(message):
        if number != wanted:
            continue
        if isinstance(value, int):
            yield _signed(value)
            continue
        at = 0
        while at < len(value):
            one, at = _number(value, at)
            yield _signed(one)


def _walk(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The number of each field with its bytes or its integer; numbers of fixed width are passed over."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        kind = key & 7
        if kind == 2:
            size, at = _number(message, at)
            yield key >> 3, message[at : at + size]
            at += size
        elif kind == 0:
            value, at = _number(message, at)
            yield key >> 3, value
        elif kind in FIXED:
            at += FIXED[kind]
        else:
            raise _unreadable(kind)


def _unreadable(kind: int) -> ValueError:
    return GroupError("a group") if kind in (3, 4) else ValueError(f"a protobuf field of the unknown kind {kind}")


def _signed(value: int) -> int:
    """An int64, which protobuf writes as the unsigned number of the same bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """A protobuf number of seven bits a byte, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
