"""A serialized ONNX model, read field by field: a server has no package that knows ONNX."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

GRAPH, NODE = 7, 1
"""Numbers of the fields of ModelProto and GraphProto in onnx.proto."""


def view(model: Path | bytes) -> memoryview:
    """The bytes of a model; those of a file are not read before they are looked at: weights are passed over."""
    if isinstance(model, bytes):
        return memoryview(model)
    with model.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def text(value: memoryview) -> str:
    """A text in a message."""
    return bytes(value).decode()


def fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Every field of that number of a protobuf message; all that are wanted here have a length before them."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        kind = key & 7
        if kind == 2:
            size, at = _number(message, at)
            if key >> 3 == wanted:
                yield message[at : at + size]
            at += size
        elif kind == 0:
            _, at = _number(message, at)
        else:
            at += 8 if kind == 1 else 4


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """A protobuf number of seven bits a byte, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
