"""API keys: who may ask this server, over HTTP and over gRPC alike."""

from __future__ import annotations

import hashlib
import hmac
import logging
import stat
from collections.abc import Iterable
from pathlib import Path

from demi.errors import InputError
from demi.server.errors import UnauthorizedError

log = logging.getLogger("demi.server")

SHORTEST = 16
"""Keys below this many characters can be guessed, and are warned of."""

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/health/live", "/health/ready"})
"""What needs no key: the probes of an orchestrator hold none, and learn nothing but whether the server is well.

Metrics name the models and tell how they are used, so they need one: Prometheus sends it with `authorization`.
"""

_AUTHORIZATION = frozenset({"authorization", b"authorization"})
_API_KEY = frozenset({"x-api-key", b"x-api-key"})

Headers = Iterable[tuple[str | bytes, str | bytes]]
"""Pairs of a lower-case name and a value: the headers of an ASGI scope, or the metadata of a gRPC call."""


class Keys:
    """The keys that open a server. It keeps their SHA-256, so that no dump of its memory holds a key."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def authorize(self, headers: Headers) -> None:
        """Let a request with one of the keys pass: `Authorization: Bearer KEY`, or `X-API-Key: KEY`.

        Raises UnauthorizedError otherwise, and where a request sends several: whoever stands in front may have looked at
        another one. How long it takes tells nothing about the keys.
        """
        given = _given(headers)
        if not given:
            raise UnauthorizedError("this server needs an API key", hint="send `Authorization: Bearer KEY`")
        if len(given) > 1:
            raise UnauthorizedError("the request has several API keys", hint="send one")
        digest = _digest(given[0])
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all of them, whichever fits
        if not any(matches):
            raise UnauthorizedError("the API key is not one of this server's")


def read_keys(path: Path) -> Keys:
    """The keys of a file, one a line; blank lines and those that begin with `#` are passed over.

    Raises InputError where the file cannot be read or holds no key that a header could carry, and warns of a file that
    everyone on the machine may read, and of keys that are easily guessed.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"the API keys cannot be read: {reason}", where=str(path)) from error
    keys = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
    if not keys:
        raise InputError("the file holds no API key", where=str(path), hint="write one a line: openssl rand -hex 32")
    for number, key in enumerate(keys, 1):
        if not all("!" <= character <= "~" for character in key):
            raise InputError(f"key {number} has a space, or a character beyond ASCII", where=str(path))
    if mode & stat.S_IROTH:
        log.warning("everyone on this machine may read the API keys: chmod o-r %s", path)
    if any(len(key) < SHORTEST for key in keys):
        log.warning("an API key in %s has less than %d characters and may be guessed", path, SHORTEST)
    return Keys(keys)


def _given(headers: Headers) -> list[bytes]:
    """The keys that a request carries."""
    keys = []
    for name, value in headers:
        if name in _API_KEY:
            keys.append(_bytes(value).strip())
        elif name in _AUTHORIZATION:
            scheme, _, key = _bytes(value).strip().partition(b" ")
            if scheme.lower() == b"bearer":
                keys.append(key.strip())
    return keys


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "replace")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
