"""What a request's head must be beyond what the parser demands, so that nobody on the way can read it otherwise.

A proxy and a server that understand one stream of bytes differently can be played against each other: the rest of one
request becomes the next one (RFC 9112, 11.2). The parser refuses doubtful lengths, line ends and folded lines; here is
the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import httptools

Pairs = Sequence[tuple[bytes, bytes]]

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
"""Headers of one value: of two, the server would go by one, and whoever stands before it by the other."""

_UPGRADES = frozenset({b"upgrade", b"http2-settings"})


class RefusedHeadError(Exception):
    """A request line, or headers, that are refused; raised into the parser, which then parses no further."""


def check_head(method: bytes, version: str, headers: Pairs) -> None:
    """Raise RefusedHeadError for a request that is meant for a proxy, of an unknown version, or with doubtful headers."""
    if method == b"CONNECT":
        raise RefusedHeadError("this server is no proxy, and connects to nobody")
    if version not in ("1.1", "1.0"):
        raise RefusedHeadError("this server speaks HTTP/1.1, and HTTP/1.0")
    names = [name for name, _ in headers]
    if len(set(names)) != len(names):
        _check_once(names)
    if version == "1.1" and b"host" not in names:
        raise RefusedHeadError("the request has no Host header")
    if version == "1.0" and b"transfer-encoding" in names:
        raise RefusedHeadError("HTTP/1.0 has no Transfer-Encoding")


def path_of(url: bytes) -> bytes:
    """The path and query that a request asks for, also where it names a whole URL; RefusedHeadError for any other."""
    if url.startswith(b"/"):
        return url
    if url == b"*":
        return b"/*"  # which is nothing here
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        parsed = None
    if parsed is None or parsed.schema not in (b"http", b"https"):
        raise RefusedHeadError("the request asks for neither a path nor a URL")
    query = b"" if parsed.query is None else b"?" + parsed.query
    return (parsed.path or b"/") + query


def without_upgrade(method: bytes, url: bytes, version: str, headers: Pairs) -> bytes:
    """The same head, asking for no other protocol."""
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
            raise RefusedHeadError(f"the header `{name.decode('latin-1')}` is given {count} times")
