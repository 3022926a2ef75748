"""Cache of JSON requests without their numbers: clients send the same text around the numbers of every request.

The counterpart of `header_cache.py` for requests in JSON with one input of floats: of two texts that are equal before and after
an array of numbers, only that array differs. Whatever is not a plain array of numbers is left to the parser of whole requests,
which also finds the words for errors.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import orjson

from demi.server.bounded_cache import keep_newest
from demi.server.protocol.json_size import check_weight
from demi.server.protocol.json_tensors import FORMATS
from demi.server.protocol.request import InferRequest
from demi.server.protocol.schemas import InferInput, InferMessage
from demi.server.protocol.signature import Signature
from demi.tensors import DType

MAX_LAYOUTS = 64
"""Layouts to keep per model."""
MAX_LAYOUT_BYTES = 2048
"""Longest text around the numbers to keep."""

_PROBES = (0.5, 0.25)
"""Numbers in the place of the others: a text is kept only if each is found as the data of the input."""


@dataclass(frozen=True, slots=True)
class JsonLayout:
    """A parsed text around an array of numbers: name, dtype and shape of the input, and the request without it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    count: int
    request: InferRequest

    def read(self, numbers: bytes) -> InferRequest | None:
        """Return the request with these numbers; None for anything but `count` of them within the dtype's range."""
        if b"t" in numbers or b"f" in numbers:  # true and false, which would count as 1 and 0
            return None
        try:
            values = orjson.loads(numbers)
            data = struct.pack(f"{self.count}{FORMATS[self.dtype]}", *values)
        except (ValueError, struct.error, OverflowError):
            return None
        feeds = {self.name: np.frombuffer(data, self.dtype.numpy).reshape(self.shape)}
        return self.request.with_feeds(feeds)


class JsonLayouts:
    """Cache of the layouts of one model's requests. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], JsonLayout] = {}
        self._lock = threading.Lock()

    def read(self, text: bytes, most_parsed: int) -> InferRequest | None:
        """Return the request in a text whose layout is known; None for any other text.

        Raises BodyTooLargeError if the values could take more than `most_parsed` bytes of memory.
        """
        if not self._known or not (parts := _split(text)):
            return None
        before, numbers, after = parts
        layout = self._known.get((before, after))
        if layout is None:
            return None
        check_weight(text, most_parsed)
        return layout.read(numbers)

    def keep(self, text: bytes, message: InferMessage, request: InferRequest, signature: Signature) -> None:
        """Cache the layout of a parsed request if it is plain, evicting the oldest when the cache is full."""
        if not _is_plain(message.inputs, request, signature) or not (parts := _split(text)):
            return
        before, _, after = parts
        depth = _depth(message.inputs[0].data)
        if depth is None or len(before) + len(after) > MAX_LAYOUT_BYTES or not _is_data(before, after, message, depth):
            return
        ((name, values),) = request.feeds.items()
        layout = JsonLayout(name, signature.input(name).dtype, values.shape, values.size, request.with_feeds({}))
        with self._lock:  # large requests are parsed in several other threads
            keep_newest(self._known, (before, after), layout, MAX_LAYOUTS)


def _split(text: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Return a text in three parts: a list after the member `data` that holds no other list, and what is before and after it."""
    start = text.find(b"[", text.find(b'"data"') + 1)
    end = text.find(b"]", start) + 1
    if start < 0 or not end:
        return None
    start = text.rfind(b"[", start, end)
    return text[:start], text[start:end], text[end:]


def _is_plain(inputs: Sequence[InferInput], request: InferRequest, signature: Signature) -> bool:
    """Return whether there is one input of floats in JSON, in the model's dtype, and all outputs go into the answer."""
    if len(inputs) != 1 or len(request.feeds) != 1 or request.id or any(output.region for output in request.outputs):
        return False
    dtype = signature.input(inputs[0].name).dtype
    return dtype in FORMATS and inputs[0].datatype == dtype.value and isinstance(inputs[0].data, list)


def _is_data(before: bytes, after: bytes, message: InferMessage, depth: int) -> bool:
    """Return whether a list of numbers between these two texts is the data of a message's only input, in `depth` other lists."""
    (given,) = message.inputs
    for probe in _PROBES:
        data: list[Any] = [probe]
        for _ in range(depth):
            data = [data]
        same = msgspec.structs.replace(message, inputs=[msgspec.structs.replace(given, data=data)])
        try:
            found = msgspec.json.decode(b"%b[%b]%b" % (before, orjson.dumps(probe), after), type=InferMessage)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return False
        if msgspec.to_builtins(found) != msgspec.to_builtins(same):
            return False
    return True


def _depth(data: object) -> int | None:
    """Return in how many lists a list of numbers is the only element; None for several lists of numbers."""
    depth = 0
    while isinstance(data, list) and data and isinstance(data[0], list):
        if len(data) > 1:
            return None
        data = data[0]
        depth += 1
    return depth
