"""Compressed bodies: requests by Content-Encoding, with a limit that a bomb cannot pass; answers by Accept-Encoding."""

from __future__ import annotations

import zlib
from io import BytesIO

from demi.server.errors import BodyTooLargeError, EncodingError, RequestError
from demi.server.memory_limit import NO_LIMIT, Lease

_GZIP = 16 + zlib.MAX_WBITS
_WINDOW = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}

_PIECE = 2**20
"""How much is unpacked before anyone looks at the limits again."""

LEVEL = 1
"""Float tensors barely shrink: more effort buys little and costs the server's time."""

SMALLEST = 1024
"""Answers below this many bytes are sent as they are."""


def check_encoding(encoding: str) -> str:
    """The content encoding in lower case, empty for none; EncodingError for one that is not spoken here."""
    if not encoding:
        return ""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return ""
    if encoding not in _WINDOW:
        raise EncodingError(f"unknown content encoding `{encoding[:40]}`", hint="use gzip, deflate or none")
    return encoding


def inflate(body: bytes, encoding: str, limit: int, lease: Lease | None = None) -> bytes:
    """The body behind a checked content encoding.

    Raises BodyTooLargeError as soon as it passes `limit`, OverloadedError as soon as the lease has no room for it, and
    RequestError when it is damaged, cut off or followed by anything.
    """
    if not encoding:
        return body
    lease = lease or NO_LIMIT.lease()
    engine = zlib.decompressobj(_WINDOW[encoding])
    whole = BytesIO()
    while not engine.eof:
        try:
            piece = engine.decompress(body, min(_PIECE, limit + 1 - whole.tell()))
        except zlib.error as error:
            raise RequestError(f"the body is not valid {encoding}: {error}") from error
        if not piece and not engine.eof:
            raise RequestError(f"the {encoding} body is cut off")
        lease.add(len(piece))
        whole.write(piece)
        if whole.tell() > limit:
            raise BodyTooLargeError(f"the decompressed body is larger than {limit} bytes")
        body = engine.unconsumed_tail
    if engine.unused_data:
        raise RequestError(f"the {encoding} body is followed by other bytes")
    return whole.getvalue()


def choose_encoding(accept: str) -> str:
    """The encoding for an answer from the request's Accept-Encoding: `gzip`, `deflate` or empty for none."""
    if not accept:
        return ""
    accepted = dict(_preference(part) for part in accept.lower().split(","))
    return next((name for name in ("gzip", "deflate") if accepted.get(name, 0.0) > 0), "")


def deflate(body: bytes, encoding: str) -> bytes:
    """The body in a chosen encoding."""
    engine = zlib.compressobj(LEVEL, wbits=_WINDOW[encoding])
    return engine.compress(body) + engine.flush()


def _preference(part: str) -> tuple[str, float]:
    name, _, parameter = part.partition(";")
    try:
        weight = float(parameter.strip().removeprefix("q=")) if parameter else 1.0
    except ValueError:
        weight = 0.0
    return name.strip(), weight
