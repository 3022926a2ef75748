"""Read a serialized ONNX model field by field, since servers have no package that reads ONNX."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

GRAPH, NODE = 7, 1
"""Field numbers of ModelProto and GraphProto in onnx.proto."""

FIXED = {1: 8, 5: 4}
"""Bytes of the wire types with a fixed width."""


class GroupError(ValueError):
    """A message holds a group, which no ONNX model has: protobuf would skip it, and this reader cannot."""


def view(model: Path | bytes) -> memoryview:
    """Return the bytes of a model; a file is mapped, so that its weights are not read."""
    if isinstance(model, bytes):
        return memoryview(model)
    with model.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def text(value: memoryview) -> str:
    """Return a string field as text; ONNX strings may hold any bytes."""
    return bytes(value).decode(errors="backslashreplace")


def fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield every length-delimited field with the number `wanted` of a protobuf message.

    Raises ValueError or IndexError for bytes that are not a message, and GroupError for a message with a group.
    """
    for number, value in _walk(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def numbers(message: memoryview, wanted: int) -> Iterator[int]:
    """Yield every integer of the fields with the number `wanted`, packed or not. Raises as `fields` does."""
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
    """Yield the number of each field with its bytes or its integer; values of fixed width are skipped."""
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
    return GroupError("a group") if kind in (3, 4) else ValueError(f"a protobuf field of unknown wire type {kind}")


def _signed(value: int) -> int:
    """Return an int64, which protobuf writes as the unsigned number with the same bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """Return a varint and the offset behind it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
