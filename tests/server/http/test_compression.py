"""Compressed bodies: both encodings, and invalid ones."""

from __future__ import annotations

import gzip
import zlib

import pytest

from demi.server.errors import BodyTooLargeError, EncodingError, RequestError
from demi.server.http.compression import check_encoding, choose_encoding, deflate, inflate

BODY = b"tensor " * 100


@pytest.mark.parametrize(
    ("encoding", "packed"), [("gzip", gzip.compress(BODY, mtime=0)), ("deflate", zlib.compress(BODY))]
)
def test_both_encodings_are_read(encoding, packed):
    """gzip is read, and deflate in zlib's format, as clients write it."""
    assert BODY == inflate(packed, check_encoding(encoding.upper()), 10_000)


@pytest.mark.parametrize(("encoding", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_both_encodings_are_written(encoding, unpack):
    """The standard library reads both encodings that the server writes."""
    assert BODY == unpack(deflate(BODY, encoding))


def test_no_encoding_leaves_the_body_alone():
    """`identity` equals no header."""
    assert BODY == inflate(BODY, check_encoding("identity"), 10)
    assert "" == check_encoding("")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, deflate", "GZIP2"])
def test_unknown_encodings(encoding):
    """Unsupported encodings raise EncodingError, which has its own status."""
    with pytest.raises(EncodingError):
        check_encoding(encoding)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_zip_bomb_stops_at_the_limit(encoding):
    """A zip bomb is refused once the limit is reached; a body of exactly the limit is read."""
    packed = deflate(bytes(10**6), encoding)

    assert 10**6 == len(inflate(packed, encoding, 10**6))
    with pytest.raises(BodyTooLargeError):
        inflate(packed, encoding, 10**6 - 1)


@pytest.mark.parametrize(
    "packed",
    [b"", b"no gzip", gzip.compress(BODY, mtime=0)[:-4], gzip.compress(BODY, mtime=0) + b"x", zlib.compress(BODY)],
)
def test_invalid_gzip(packed):
    """Empty, damaged, truncated or foreign bodies, or with bytes after them, are refused."""
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
def test_encoding_of_the_answer(accept, chosen):
    """gzip is preferred, a weight of 0 excludes an encoding, and unsupported ones are ignored."""
    assert chosen == choose_encoding(accept)
