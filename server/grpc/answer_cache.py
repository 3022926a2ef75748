"""Cache of serialized answers without their tensors: the answers of one model mostly differ in these only.

The counterpart of `message_cache.py`. `raw_output_contents` is the last field of an answer, so that the bytes of the fields
before it, followed by the tensors, are the whole message.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from demi.server.bounded_cache import keep_newest
from demi.server.grpc.message_cache import tag_of
from demi.server.grpc.wire import write_answer
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer
from demi.server.protocol.binary_tensors import write_binary
from demi.server.protocol.header_cache import MAX_HEADERS
from demi.server.protocol.request import InferRequest, OutputRequest
from demi.tensors import DType

RAW_OUTPUT = 6
"""Field number of `raw_output_contents`."""

Key = tuple[str, tuple[OutputRequest, ...], tuple[tuple[int, ...], ...]]
"""Key of the fields besides the model: precision, requested outputs, and their shapes."""


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """The serialized fields before the tensors, and the datatypes of these."""

    head: bytes
    dtypes: tuple[DType, ...]


class AnswerCache:
    """Serializes answers. Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Model, dict[Key, CachedAnswer]] = WeakKeyDictionary()

    def serialize(self, model: Model, request: InferRequest, answer: Answer) -> bytes:
        """Return the bytes of `write_answer`'s message, which is made only if no answer of this form has been before."""
        if request.id or any(wanted.classes or wanted.region for wanted in request.outputs):
            return write_answer(model, request, answer).SerializeToString()
        arrays = [answer.outputs[wanted.name] for wanted in request.outputs]
        key = (answer.precision, request.outputs, tuple([array.shape for array in arrays]))
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = {}
        cached = known.get(key)
        if cached is None:
            cached = _without_tensors(model, request, answer)
            keep_newest(known, key, cached, MAX_HEADERS)
        pieces = [cached.head]
        for array, dtype in zip(arrays, cached.dtypes, strict=True):
            content = write_binary(array, dtype)
            pieces += (tag_of(RAW_OUTPUT, len(content)), content)
        return b"".join(pieces)


def _without_tensors(model: Model, request: InferRequest, answer: Answer) -> CachedAnswer:
    message = write_answer(model, request, answer)
    message.ClearField("raw_output_contents")
    dtypes = tuple(model.signature.output(wanted.name).dtype for wanted in request.outputs)
    return CachedAnswer(message.SerializeToString(), dtypes)
