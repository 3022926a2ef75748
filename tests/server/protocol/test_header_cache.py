"""The cache of JSON headers: cached headers give the same requests as parsing."""

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
    """Return a binary request with input `b` first."""
    first, second = np.array(b, np.int8), np.array(a, np.float32)
    return binary_message(
        ("b", DType.INT8, first.shape, first.tobytes()), ("a", DType.FP32, second.shape, second.tobytes()), **members
    )


def is_cached(cache: HeaderCache, body: bytes, length: str | None, signature=SIGNATURE) -> bool:
    """Return whether reading a request caches its header."""
    read_request(body, length, signature, cache=cache)
    size = int(length) if length else len(body)
    return cache.find(body[:size], len(body) - size) is not None


@given(st.lists(st.tuples(st.lists(st.floats(width=32), max_size=4), st.lists(st.integers(-128, 127), max_size=3))))
def test_cached_header_gives_the_same_request(tensors):
    """A cached header gives the same request as parsing: names in order, dtypes, shapes and bits."""
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


def test_plain_binary_requests_are_cached():
    """Plain binary requests are cached, JSON requests are not."""
    cache = HeaderCache()
    body, length = request([1, 2], [3])

    assert is_cached(cache, body, length)
    assert not is_cached(HeaderCache(), message([1, 2, 3], shape=[1, 3]), None, signature_of("x:fp32[batch,3]", rows=4))


@pytest.mark.parametrize(
    ("members", "signature"),
    [({"id": "mine"}, SIGNATURE), ({"pad": "x" * header_cache.MAX_HEADER_BYTES}, SIGNATURE)],
    ids=["an id", "a long head"],
)
def test_unique_headers_are_not_cached(members, signature):
    """Requests with an id or a long header are not cached."""
    assert not is_cached(HeaderCache(), *request([1], [2], **members), signature)


@pytest.mark.parametrize(
    ("spec", "dtype", "data"),
    [("x:bool[n]", DType.BOOL, b"\x01"), ("x:bytes[n]", DType.BYTES, b"\x00\x00\x00\x00")],
)
def test_values_that_need_checks_are_not_cached(spec, dtype, data):
    """BOOL and BYTES are not cached: their bytes need checks each time."""
    signature = signature_of(spec, outputs=["y:fp32[n]"])

    assert not is_cached(HeaderCache(), *binary_message(("x", dtype, [1], data)), signature)


def test_floats_of_another_width_are_cast_each_time():
    """FP16 for an FP32 input is accepted but not cached."""
    signature = signature_of("x:fp32[n]", outputs=["y:fp32[n]"])
    half = np.array([1.5], np.float16)
    body, length = binary_message(("x", DType.FP16, [1], half.tobytes()))
    cache = HeaderCache()

    assert not is_cached(cache, body, length, signature)
    assert np.float32 == read_request(body, length, signature, cache=cache).feeds["x"].dtype


def test_cached_header_with_the_wrong_number_of_bytes():
    """The wrong number of bytes after a cached header is refused as at first."""
    cache = HeaderCache()
    body, length = request([1, 2], [3])
    assert is_cached(cache, body, length)

    with pytest.raises(InputError, match="should have 8 bytes, but only 7 follow"):
        read_request(body[:-1], length, SIGNATURE, cache=cache)
    with pytest.raises(InputError, match="extra bytes"):
        read_request(body + b"x", length, SIGNATURE, cache=cache)


def test_full_cache_evicts_the_oldest(monkeypatch):
    """A full cache evicts its oldest header."""
    monkeypatch.setattr(header_cache, "MAX_HEADERS", 3)
    cache = HeaderCache()
    sent = [request([0.0] * size, [1]) for size in range(1, 6)]
    for body, length in sent:
        assert is_cached(cache, body, length)

    found = [cache.find(body[: int(length)], len(body) - int(length)) is not None for body, length in sent]
    assert [False, False, True, True, True] == found
