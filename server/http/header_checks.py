"""Checks of request line and headers against request smuggling, beyond those of the parser.

If a proxy and a server disagree about where a request ends, an attacker can make the rest of one request look like the next
(RFC 9112, 11.2). The parser refuses ambiguous lengths, line endings and folded lines; this module refuses the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import httptools

RawHeaders = Sequence[tuple[bytes, bytes]]
"""Pairs of lower-case name and value, in the order sent."""

ONCE = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-type",
        b"host",
        b"inference-header-content-length",
        b"origin",
        b"sec-fetch-site",
        b"x-api-key",
    }
)
"""Headers that may appear once only: given two, this server could use one and a proxy the other."""

_UPGRADES = frozenset({b"upgrade", b"http2-settings"})


class RefusedHeadError(Exception):
    """The request line or a header is refused. Raised inside a parser callback to stop parsing."""


def check_head(method: bytes, version: str, headers: RawHeaders) -> None:
    """Raise RefusedHeadError for a CONNECT request, an unknown HTTP version, or ambiguous headers."""
    if method == b"CONNECT":
        raise RefusedHeadError("this server is not a proxy and does not support CONNECT")
    if version not in ("1.1", "1.0"):
        raise RefusedHeadError("this server supports HTTP/1.1 and HTTP/1.0 only")
    names = [name for name, _ in headers]
    if len(set(names)) != len(names):
        _check_once(names)
    if version == "1.1" and b"host" not in names:
        raise RefusedHeadError("the request has no Host header")
    if version == "1.0" and b"transfer-encoding" in names:
        raise RefusedHeadError("HTTP/1.0 does not support Transfer-Encoding")


def path_of(url: bytes) -> bytes:
    """Return path and query of a request target, which may be a whole URL; RefusedHeadError for any other form."""
    if url.startswith(b"/"):
        return url
    if url == b"*":
        return b"/*"  # a path that does not exist
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        parsed = None
    if parsed is None or parsed.schema not in (b"http", b"https"):
        raise RefusedHeadError("the request target is neither a path nor a URL")
    query = b"" if parsed.query is None else b"?" + parsed.query
    return (parsed.path or b"/") + query


def without_upgrade(method: bytes, url: bytes, version: str, headers: RawHeaders) -> bytes:
    """Return the same request line and headers, without the request to upgrade the protocol."""
    lines = [b"%s %s HTTP/%s" % (method, url, version.encode())]
    for name, value in headers:
        if name == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            value = b", ".join(token for token in tokens if token.lower() not in _UPGRADES)
        if name not in _UPGRADES:
            lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _check_once(names: Sequence[bytes]) -> None:
    for name, count in Counter(names).items():
        if count > 1 and name in ONCE:
            raise RefusedHeadError(f"the header `{name.decode('latin-1')}` is sent {count} times; send it once")
