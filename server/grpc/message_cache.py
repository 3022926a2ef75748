"""Cache of parsed messages: clients send the same fields before the tensors of every request.

The counterpart of `server/protocol/header_cache.py`. Protobuf writes fields in the order of their numbers, so that
`raw_input_contents`, the last, end a message: of two messages that are equal up to there, only the tensors differ. Messages
are cached under the same conditions as headers, and only in this usual order.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from demi.server.bounded_cache import keep_newest
from demi.server.grpc.inference import ModelInferRequest
from demi.server.protocol.header_cache import MAX_HEADER_BYTES, MAX_HEADERS, CachedHeader, TensorLayout
from demi.server.protocol.request import InferRequest
from demi.server.protocol.signature import Signature
from demi.tensors import DType

RAW_INPUT = 7
"""Field number of `raw_input_contents`."""


class CachedMessage(msgspec.Struct, frozen=True):
    """A parsed message: its model, and the request in any message with the same `fixed` bytes at the same places."""

    model: str
    version: str | None
    signature: Signature
    """The request was checked against it; for any other the message must be parsed."""
    fixed: tuple[tuple[int, bytes], ...]
    request: CachedHeader

    def matches(self, data: bytes) -> bool:
        """Return whether a message of the same length differs in its tensors only."""
        return all(data.startswith(piece, at) for at, piece in self.fixed)

    def read(self, data: bytes) -> InferRequest:
        """Return the request in a message that matches."""
        return self.request.read(data, 0)


class MessageCache:
    """Cache of the messages of all models. Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._known: dict[int, CachedMessage] = {}

    def find(self, data: bytes) -> CachedMessage | None:
        """Return the cached message that differs from this one in its tensors only; None if there is none."""
        known = self._known.get(len(data))
        return known if known and known.matches(data) else None

    def keep(self, data: bytes, message: ModelInferRequest, request: InferRequest, signature: Signature) -> None:
        """Cache a parsed message if it is plain: one for each length, evicting the oldest when the cache is full."""
        raw = list(message.raw_input_contents)
        frames = [tag_of(RAW_INPUT, len(content)) for content in raw]
        tail = b"".join([part for pair in zip(frames, raw, strict=True) for part in pair])
        head = data[: len(data) - len(tail)]
        if len(head) > MAX_HEADER_BYTES or not data.endswith(tail) or not _is_plain(message, request, signature, raw):
            return
        fixed, starts, at = [], {}, len(head)
        for given, frame, content in zip(message.inputs, frames, raw, strict=True):
            fixed.append((at, frame))
            starts[given.name] = at + len(frame)
            at = starts[given.name] + len(content)
        fixed[0] = (0, head + frames[0])
        tensors = tuple(
            TensorLayout(name, values.dtype, values.shape, values.size, starts[name])
            for name, values in request.feeds.items()
        )
        cached = CachedMessage(
            message.model_name,
            message.model_version or None,
            signature,
            tuple(fixed),
            CachedHeader(tensors, len(data), request.with_feeds({})),
        )
        keep_newest(self._known, len(data), cached, MAX_HEADERS)


def _is_plain(message: ModelInferRequest, request: InferRequest, signature: Signature, raw: Sequence[bytes]) -> bool:
    """Return whether every input is a raw entry of numbers, in the model's dtype, and all outputs go into the answer."""
    if request.id or not raw or len(raw) != len(message.inputs) or any(output.region for output in request.outputs):
        return False
    dtypes = {given.name: signature.input(given.name).dtype for given in message.inputs}
    return all(
        given.datatype == dtypes[given.name].value and dtypes[given.name] not in (DType.BYTES, DType.BOOL)
        for given in message.inputs
    )


def tag_of(field: int, size: int) -> bytes:
    """Return the bytes before the `size` bytes of a field below 16: its number, and the size, seven bits a byte."""
    encoded = bytearray((field << 3 | 2,))
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)
