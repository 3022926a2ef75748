"""HeaderCache of binary requests that are known: what they give is what reading them again would give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.errors import InputError
from demi.server.protocol import header_cache as header_cache
from demi.server.protocol.body import read_request
from demi.server.protocol.header_cache import HeaderCache
from demi.tensors import DType
from tests.server.fakes import binary_message, message, signature_of

SIGNATURE = signature_of("a:fp32[n]", "b:int8[m]", outputs=["y:fp32[n]", "z:fp32[n]"])


def request(a: list[float], b: list[int], **members: object) -> tuple[bytes, str]:
    """A binary request with `b` first, as a client may send it."""
    first, second = np.array(b, np.int8), np.array(a, np.float32)
    return binary_message(
        ("b", DType.INT8, first.shape, first.tobytes()), ("a", DType.FP32, second.shape, second.tobytes()), **members
    )


def kept(cache: HeaderCache, body: bytes, length: str | None, signature=SIGNATURE) -> bool:
    """Whether reading a request leaves its head behind."""
    read_request(body, length, signature, cache=cache)
    size = int(length) if length else len(body)
    return cache.find(body[:size], len(body) - size) is not None


@given(st.lists(st.tuples(st.lists(st.floats(width=32), max_size=4), st.lists(st.integers(-128, 127), max_size=3))))
def test_a_known_head_changes_nothing(tensors):
    """Whatever came before, a request is read as it would be alone: names in order, types, shapes and bits."""
    cache = HeaderCache()
    for a, b in tensors:
        body, length = request(a, b, parameters={"binary_data_output": True, "timeout": 7, "precision": "half"})
        alone, after = read_request(body, length, SIGNATURE), read_request(body, length, SIGNATURE, cache=cache)

        assert list(alone.feeds) == list(after.feeds)
        for name, values in alone.feeds.items():
            assert (values.dtype, values.shape, values.tobytes()) == (
                after.feeds[name].dtype,
                after.feeds[name].shape,
                after.feeds[name].tobytes(),
            )
        assert (alone.outputs, alone.timeout_us, alone.precision) == (after.outputs, after.timeout_us, after.precision)


def test_plain_binary_requests_are_kept():
    """One that comes again is not parsed again."""
    cache = HeaderCache()
    body, length = request([1, 2], [3])

    assert kept(cache, body, length)
    assert not kept(HeaderCache(), message([1, 2, 3], shape=[1, 3]), None, signature_of("x:fp32[batch,3]", rows=4))


@pytest.mark.parametrize(
    ("members", "signature"),
    [({"id": "mine"}, SIGNATURE), ({"pad": "x" * header_cache.MAX_HEADER_BYTES}, SIGNATURE)],
    ids=["an id", "a long head"],
)
def test_requests_of_their_own_are_not(members, signature):
    """What is told apart by its head is read each time."""
    assert not kept(HeaderCache(), *request([1], [2], **members), signature)


@pytest.mark.parametrize(
    ("spec", "dtype", "data"),
    [("x:bool[n]", DType.BOOL, b"\x01"), ("x:bytes[n]", DType.BYTES, b"\x00\x00\x00\x00")],
)
def test_values_that_must_be_looked_at(spec, dtype, data):
    """Booleans and strings can be wrong in their bytes: a known head must not let them pass."""
    signature = signature_of(spec, outputs=["y:fp32[n]"])

    assert not kept(HeaderCache(), *binary_message(("x", dtype, [1], data)), signature)


def test_floats_of_another_width_are_cast_each_time():
    """FP16 for an FP32 input is allowed, and is no plain tail."""
    signature = signature_of("x:fp32[n]", outputs=["y:fp32[n]"])
    half = np.array([1.5], np.float16)
    body, length = binary_message(("x", DType.FP16, [1], half.tobytes()))
    cache = HeaderCache()

    assert not kept(cache, body, length, signature)
    assert np.float32 == read_request(body, length, signature, cache=cache).feeds["x"].dtype


def test_a_known_head_with_too_few_bytes():
    """It is refused as it would be the first time."""
    cache = HeaderCache()
    body, length = request([1, 2], [3])
    assert kept(cache, body, length)

    with pytest.raises(InputError, match="should have 8 bytes, but only 7 follow"):
        read_request(body[:-1], length, SIGNATURE, cache=cache)
    with pytest.raises(InputError, match="extra bytes"):
        read_request(body + b"x", length, SIGNATURE, cache=cache)


def test_there_is_room_for_some(monkeypatch):
    """The oldest goes where there are too many: memory has an end, whatever clients send."""
    monkeypatch.setattr(header_cache, "MAX_HEADERS", 3)
    cache = HeaderCache()
    sent = [request([0.0] * size, [1]) for size in range(1, 6)]
    for body, length in sent:
        assert kept(cache, body, length)

    found = [cache.find(body[: int(length)], len(body) - int(length)) is not None for body, length in sent]
    assert [False, False, True, True, True] == found
