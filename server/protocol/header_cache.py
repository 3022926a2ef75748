"""Cache of parsed JSON headers: clients send the same header before every binary request.

The meaning of a header depends only on its bytes and the model's signature, so a cached one equals a parsed one. Headers are
cached only if all inputs are plain numbers after the header: not with a request id, shared memory, or values that need
checks of their own (BOOL, BYTES, other dtypes).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demi.server.bounded_cache import keep_newest
from demi.server.protocol.json_layouts import JsonLayouts
from demi.server.protocol.request import InferRequest
from demi.server.protocol.schemas import InferInput
from demi.server.protocol.signature import Signature
from demi.tensors import Array, DType, Feeds

MAX_HEADERS = 64
"""Headers to keep per model."""
MAX_HEADER_BYTES = 2048
"""Longest header to keep."""


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Position of an input's elements; `start` counts bytes from the end of the header."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    count: int
    start: int


@dataclass(frozen=True, slots=True)
class CachedHeader:
    """A parsed header: the inputs in the model's order, the number of bytes that follow, and a request without inputs."""

    tensors: tuple[TensorLayout, ...]
    size: int
    request: InferRequest

    def read(self, body: bytes, length: int) -> InferRequest:
        """Return the request in a body that starts with this header, followed by `size` bytes."""
        feeds: Feeds = {
            tensor.name: np.frombuffer(body, tensor.dtype, tensor.count, length + tensor.start).reshape(tensor.shape)
            for tensor in self.tensors
        }
        return self.request.with_feeds(feeds)


class HeaderCache:
    """Cache of the headers of one model's requests. Thread-safe."""

    def __init__(self) -> None:
        self.layouts = JsonLayouts()
        """Layouts of requests that are JSON alone."""
        self._known: dict[bytes, CachedHeader] = {}
        self._lock = threading.Lock()

    def find(self, text: bytes, tail: int) -> CachedHeader | None:
        """Return a cached header followed by `tail` bytes; None if it is unknown or does not match that number."""
        header = self._known.get(text)
        return header if header and header.size == tail else None

    def keep(self, text: bytes, inputs: Sequence[InferInput], request: InferRequest, signature: Signature) -> None:
        """Cache a parsed header if it is plain, evicting the oldest when the cache is full."""
        if len(text) > MAX_HEADER_BYTES or not _is_plain(inputs, request, signature):
            return
        starts, at = {}, 0
        for given in inputs:
            starts[given.name] = at
            at += request.feeds[given.name].nbytes
        tensors = tuple(_tensor(name, values, starts[name]) for name, values in request.feeds.items())
        with self._lock:  # large requests are parsed in several other threads
            keep_newest(self._known, text, CachedHeader(tensors, at, request.with_feeds({})), MAX_HEADERS)


def _tensor(name: str, values: Array, start: int) -> TensorLayout:
    return TensorLayout(name, values.dtype, values.shape, values.size, start)


def _is_plain(inputs: Sequence[InferInput], request: InferRequest, signature: Signature) -> bool:
    """Return whether all inputs are numbers after the header, in the model's dtypes, and all outputs go into the answer."""
    if request.id or any(output.region for output in request.outputs):
        return False
    return all(_is_tail(given, signature) for given in inputs)


def _is_tail(given: InferInput, signature: Signature) -> bool:
    dtype = signature.input(given.name).dtype
    is_sent_as_bytes = isinstance(given.parameters, dict) and "binary_data_size" in given.parameters
    return is_sent_as_bytes and given.datatype == dtype.value and dtype not in (DType.BYTES, DType.BOOL)
