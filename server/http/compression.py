"""Decompress requests by Content-Encoding, safe against zip bombs, and compress answers by Accept-Encoding."""

from __future__ import annotations

import zlib
from io import BytesIO

from demi.server.errors import BodyTooLargeError, EncodingError, RequestError
from demi.server.memory_limit import NO_LIMIT, Reservation

_GZIP = 16 + zlib.MAX_WBITS
_WINDOW = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}

_CHUNK = 2**20
"""Bytes to decompress between checks of the limits."""

LEVEL = 1
"""Float tensors barely compress: higher levels cost CPU time and save little."""

MIN_COMPRESSED_BYTES = 1024
"""Answers with fewer bytes are sent uncompressed."""


def check_encoding(encoding: str) -> str:
    """Return the content encoding in lower case, empty for none; EncodingError if it is not supported."""
    if not encoding:
        return ""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return ""
    if encoding not in _WINDOW:
        raise EncodingError(f"unknown content encoding `{encoding[:40]}`", hint="use gzip, deflate or none")
    return encoding


def inflate(body: bytes, encoding: str, limit: int, reservation: Reservation | None = None) -> bytes:
    """Decompress a body with a content encoding that `check_encoding` has returned.

    Raises BodyTooLargeError as soon as the result exceeds `limit` bytes, OverloadedError as soon as the server's memory
    limit is reached, and RequestError if the body is damaged, truncated or followed by other bytes.
    """
    if not encoding:
        return body
    reservation = reservation or NO_LIMIT.reserve()
    engine = zlib.decompressobj(_WINDOW[encoding])
    whole = BytesIO()
    while not engine.eof:
        try:
            piece = engine.decompress(body, min(_CHUNK, limit + 1 - whole.tell()))
        except zlib.error as error:
            raise RequestError(f"the body is not valid {encoding}: {error}") from error
        if not piece and not engine.eof:
            raise RequestError(f"the {encoding} body is truncated")
        reservation.add(len(piece))
        whole.write(piece)
        if whole.tell() > limit:
            raise BodyTooLargeError(f"the decompressed body is larger than {limit} bytes")
        body = engine.unconsumed_tail
    if engine.unused_data:
        raise RequestError(f"the {encoding} body is followed by other bytes")
    return whole.getvalue()


def choose_encoding(accept: str) -> str:
    """Choose the encoding of an answer by the request's Accept-Encoding: `gzip`, `deflate` or empty for none."""
    if not accept:
        return ""
    accepted = dict(_preference(part) for part in accept.lower().split(","))
    return next((name for name in ("gzip", "deflate") if accepted.get(name, 0.0) > 0), "")


def deflate(body: bytes, encoding: str) -> bytes:
    """Compress a body with an encoding that `choose_encoding` has returned."""
    engine = zlib.compressobj(LEVEL, wbits=_WINDOW[encoding])
    return engine.compress(body) + engine.flush()


def _preference(part: str) -> tuple[str, float]:
    name, _, parameter = part.partition(";")
    try:
        weight = float(parameter.strip().removeprefix("q=")) if parameter else 1.0
    except ValueError:
        weight = 0.0
    return name.strip(), weight
