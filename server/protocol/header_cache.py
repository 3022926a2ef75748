"""The JSON of binary requests, understood once: a client sends the same words before every tensor.

What a head says depends on nothing but its bytes and the model's signature, so an answer from here is what reading it
again would give. Only heads of plain numbers are kept: an id, a place in shared memory, or values that must be looked
at make a request one of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demi.server.protocol.request import InferRequest
from demi.server.protocol.schemas import InferInput
from demi.server.protocol.signature import Signature
from demi.tensors import Array, DType, Feeds

MOST = 64
"""How many heads are kept for a model."""
LONGEST = 2048
"""The length of the longest one."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where an input's elements are, counted from the end of the head."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    count: int
    start: int


@dataclass(frozen=True, slots=True)
class Head:
    """What a head says: the inputs in the order of the model's, how many bytes follow, and all the rest."""

    tensors: tuple[Tensor, ...]
    size: int
    rest: InferRequest

    def read(self, body: bytes, length: int) -> InferRequest:
        """The request of a body with this head, whose other bytes are as many as it says."""
        feeds: Feeds = {
            tensor.name: np.frombuffer(body, tensor.dtype, tensor.count, length + tensor.start).reshape(tensor.shape)
            for tensor in self.tensors
        }
        return InferRequest(feeds, self.rest.outputs, "", self.rest.timeout_us, self.rest.wish)


class Heads:
    """The heads of one model's requests that have been understood. Any thread may use it."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self._lock = threading.Lock()

    def find(self, text: bytes, tail: int) -> Head | None:
        """What is known of a head that so many bytes follow; None for one that is new, or that does not fit them."""
        head = self._known.get(text)
        return head if head and head.size == tail else None

    def keep(self, text: bytes, inputs: Sequence[InferInput], request: InferRequest, signature: Signature) -> None:
        """Remember a head that has been read, in place of the oldest where there are too many."""
        if len(text) > LONGEST or not _is_plain(inputs, request, signature):
            return
        starts, at = {}, 0
        for given in inputs:
            starts[given.name] = at
            at += request.feeds[given.name].nbytes
        tensors = tuple(_tensor(name, values, starts[name]) for name, values in request.feeds.items())
        rest = InferRequest({}, request.outputs, "", request.timeout_us, request.wish)
        with self._lock:  # large requests are read in other threads, several at once
            while len(self._known) >= MOST:
                del self._known[next(iter(self._known))]
            self._known[text] = Head(tensors, at, rest)


def _tensor(name: str, values: Array, start: int) -> Tensor:
    return Tensor(name, values.dtype, values.shape, values.size, start)


def _is_plain(inputs: Sequence[InferInput], request: InferRequest, signature: Signature) -> bool:
    """Whether every input is numbers behind the head, in the model's own type, and every output goes into the answer."""
    if request.id or any(output.place for output in request.outputs):
        return False
    return all(_is_tail(given, signature) for given in inputs)


def _is_tail(given: InferInput, signature: Signature) -> bool:
    dtype = signature.input(given.name).dtype
    is_sent_as_bytes = isinstance(given.parameters, dict) and "binary_data_size" in given.parameters
    return is_sent_as_bytes and given.datatype == dtype.value and dtype not in (DType.BYTES, DType.BOOL)
