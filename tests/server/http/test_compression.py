"""Compressed bodies: both encodings, and every way in which one can be bad."""

from __future__ import annotations

import gzip
import zlib

import pytest

from demi.server.errors import BodyTooLargeError, EncodingError, RequestError
from demi.server.http.compression import check_encoding, choose_encoding, deflate, inflate

BODY = b"tensor " * 100


@pytest.mark.parametrize(("encoding", "packed"), [("gzip", gzip.compress(BODY)), ("deflate", zlib.compress(BODY))])
def test_both_encodings_are_read(encoding, packed):
    """gzip is gzip, and deflate is zlib's format, as the clients write it."""
    assert BODY == inflate(packed, check_encoding(encoding.upper()), 10_000)


@pytest.mark.parametrize(("encoding", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_both_encodings_are_written(encoding, unpack):
    """The standard library reads what we write."""
    assert BODY == unpack(deflate(BODY, encoding))


def test_no_encoding_leaves_the_body_alone():
    """`identity` and no header at all mean the same."""
    assert BODY == inflate(BODY, check_encoding("identity"), 10)
    assert "" == check_encoding("")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, deflate", "GZIP2"])
def test_unknown_encodings(encoding):
    """What is not spoken here has a status of its own."""
    with pytest.raises(EncodingError):
        check_encoding(encoding)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_stops_at_the_limit(encoding):
    """A body that unpacks to a gigabyte is refused after the bytes of the limit; one of exactly the limit is read."""
    packed = deflate(bytes(10**6), encoding)

    assert 10**6 == len(inflate(packed, encoding, 10**6))
    with pytest.raises(BodyTooLargeError):
        inflate(packed, encoding, 10**6 - 1)


@pytest.mark.parametrize(
    "packed", [b"", b"no gzip", gzip.compress(BODY)[:-4], gzip.compress(BODY) + b"x", zlib.compress(BODY)]
)
def test_bad_gzip(packed):
    """Empty, damaged, cut off, followed by something, or of another format: refused."""
    with pytest.raises(RequestError):
        inflate(packed, "gzip", 10_000)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip;q=0.5", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("GZIP;q=0", ""),
        ("br, zstd", ""),
        ("gzip;q=x", ""),
    ],
)
def test_the_answers_encoding(accept, chosen):
    """gzip is preferred, a weight of 0 is a refusal, and what we do not speak is passed over."""
    assert chosen == choose_encoding(accept)
