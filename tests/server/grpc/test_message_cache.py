"""The cache of gRPC messages: cached messages give the same requests as parsing."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.server.grpc.calls import MessageLimits
from demi.server.grpc.infer import InferMethods
from demi.server.grpc.inference import InferParameter, ModelInferRequest, ModelInferResponse
from demi.server.grpc.message_cache import MessageCache
from demi.server.grpc.wire import read_request
from demi.server.memory_limit import NO_LIMIT
from demi.server.models.model import Model
from demi.server.protocol.header_cache import MAX_HEADER_BYTES, MAX_HEADERS
from demi.server.protocol.request import InferRequest
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY
from demi.server.settings import ServeSettings
from tests.server.fakes import loaded, open_fake, signature_of

SIGNATURE = signature_of("a:fp32[n]", "b:int8[m]", outputs=["y:fp32[n]", "z:fp32[n]"])


def asked(a: list[float], b: list[int], **members: object) -> ModelInferRequest:
    """Return a message with input `b` first."""
    first, second = np.array(b, np.int8), np.array(a, np.float32)
    inputs = [
        {"name": "b", "datatype": "INT8", "shape": first.shape},
        {"name": "a", "datatype": "FP32", "shape": second.shape},
    ]
    raw = [first.tobytes(), second.tobytes()]
    return ModelInferRequest(**{"model_name": "m", "inputs": inputs, "raw_input_contents": raw} | members)


def parse(data: bytes) -> InferRequest:
    """Parse a message without a cache."""
    message = ModelInferRequest.FromString(data)
    return read_request(message, list(message.raw_input_contents), SIGNATURE, NO_SHARED_MEMORY)


def keep(cache: MessageCache, data: bytes) -> None:
    """Parse a message and offer it to a cache."""
    cache.keep(data, ModelInferRequest.FromString(data), parse(data), SIGNATURE)


def contents(request: InferRequest) -> tuple[object, ...]:
    """Return everything that a request says."""
    feeds = [(name, each.dtype, each.shape, each.tobytes()) for name, each in request.feeds.items()]
    return feeds, request.outputs, request.id, request.timeout_us, request.precision


PARAMETERS = {"timeout": InferParameter(int64_param=7), "precision": InferParameter(string_param="half")}


@given(st.lists(st.tuples(st.lists(st.floats(width=32), max_size=4), st.lists(st.integers(-128, 127), max_size=3))))
def test_a_cached_message_gives_the_same_request(tensors):
    """Every message that the cache knows means what parsing finds: names, dtypes, shapes, bits and parameters."""
    cache = MessageCache()
    for a, b in tensors:
        data = asked(a, b, parameters=PARAMETERS, outputs=[{"name": "z"}]).SerializeToString()
        keep(cache, data)
        known = cache.find(data)

        assert known is not None
        assert ("m", None) == (known.model, known.version)
        assert contents(parse(data)) == contents(known.read(data))


def test_messages_that_differ_in_their_tensors_only_are_known():
    """Another message is known by an earlier one of the same fields and sizes."""
    cache = MessageCache()
    keep(cache, asked([1, 2], [3]).SerializeToString())
    other = asked([5, 6], [7]).SerializeToString()

    known = cache.find(other)

    assert known is not None
    assert [5, 6] == known.read(other).feeds["a"].tolist()


@pytest.mark.parametrize(
    "other",
    [
        asked([1, 2], [3], model_name="n"),
        asked([1], [3, 4, 5, 6, 7]),
        asked([1, 2], [3], outputs=[{"name": "z"}]),
        asked([1, 2], [3], model_version="2"),
    ],
    ids=["model", "shapes", "outputs", "version"],
)
def test_messages_that_differ_otherwise_are_not(other):
    """A message with another model, version, shape or output is parsed."""
    cache = MessageCache()
    keep(cache, asked([1, 2], [3]).SerializeToString())

    assert cache.find(other.SerializeToString()) is None


def test_lengths_between_the_tensors_are_compared():
    """Two tensors that divide the same bytes differently are two messages, though they begin alike and are equally long."""
    cache = MessageCache()
    data = asked([1, 2], [3]).SerializeToString()
    keep(cache, data)
    shifted = data.replace(b"\x3a\x01\x03\x3a\x08", b"\x3a\x01\x03\x3a\x07")

    assert data != shifted
    assert cache.find(shifted) is None


@pytest.mark.parametrize(
    "message",
    [
        asked([1], [2], id="mine"),
        asked([1], [2], parameters={"pad": InferParameter(string_param="x" * MAX_HEADER_BYTES)}),
    ],
    ids=["an id", "a long head"],
)
def test_unique_messages_are_not_cached(message):
    """Messages with an id or many other fields are parsed each time."""
    cache = MessageCache()
    data = message.SerializeToString()
    keep(cache, data)

    assert cache.find(data) is None


def test_messages_in_another_order_are_not_cached():
    """Fields after the tensors are legal in protobuf, and parsed each time."""
    cache = MessageCache()
    data = asked([1], [2], model_name="").SerializeToString() + ModelInferRequest(model_name="m").SerializeToString()
    keep(cache, data)

    assert cache.find(data) is None


def test_the_oldest_message_is_evicted():
    """The cache stays small, whatever clients send."""
    cache = MessageCache()
    messages = [asked([0.0] * size, []).SerializeToString() for size in range(MAX_HEADERS + 1)]
    for data in messages:
        keep(cache, data)

    assert cache.find(messages[0]) is None
    assert cache.find(messages[-1]) is not None


class Drawing:
    """A repository that draws among two versions, and a call; counts the draws."""

    def __init__(self) -> None:
        self.models = [Model("m", version, ServeSettings()) for version in ("1", "2")]
        for model in self.models:
            model.start(loaded(open_fake()))
        self.draws = 0
        self.metadata: list[tuple[tuple[str, str], ...]] = []

    def route(self, *_: object) -> Model:
        """Return both in turn."""
        self.draws += 1
        return self.models[self.draws % 2]

    def time_remaining(self) -> None:
        """Set no deadline."""

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Keep the metadata."""
        self.metadata.append(metadata)


def test_one_draw_for_each_request():
    """Where a canary takes a share, a cached message is drawn once, and parsed again for the version that did not see it."""
    x = np.array([[1, 2, 3]], np.float32)
    data = ModelInferRequest(
        model_name="m",
        inputs=[{"name": "x", "datatype": "FP32", "shape": x.shape}],
        raw_input_contents=[x.tobytes()],
    ).SerializeToString()

    async def ask() -> tuple[Drawing, list[bytes]]:
        drawing = Drawing()
        methods = InferMethods(drawing, ServeSettings(), NO_SHARED_MEMORY, None, MessageLimits())
        answers = [await methods.unary(data, drawing, NO_LIMIT.reserve()) for _ in range(6)]
        for model in drawing.models:
            model.close()
        return drawing, answers

    drawing, answers = asyncio.run(ask())
    found = [ModelInferResponse.FromString(answer) for answer in answers]

    assert ["2", "1"] * 3 == [answer.model_version for answer in found]
    assert {(2 * x).tobytes()} == {bytes(answer.raw_output_contents[0]) for answer in found}
    assert (6, 6) == (drawing.draws, len(drawing.metadata))
