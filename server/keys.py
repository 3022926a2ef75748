"""API keys, checked on HTTP requests and gRPC calls alike, and sessions of browsers that were opened with a key."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from demi.errors import InputError
from demi.server.errors import UnauthorizedError
from demi.server.settings import ServeSettings

log = logging.getLogger("demi.server")

SHORTEST = 16
"""Characters. Shorter keys can be guessed, so `read_keys` warns about them."""

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/health/live", "/health/ready"})
"""Health paths need no key: the probes of an orchestrator have none, and learn only whether the server is healthy.

Metrics need one, since they name the models and their usage; Prometheus sends it with its `authorization` setting.
"""

_AUTHORIZATION = frozenset({"authorization", b"authorization"})
_API_KEY = frozenset({"x-api-key", b"x-api-key"})

HeaderPairs = Iterable[tuple[str | bytes, str | bytes]]
"""Pairs of a lower-case name and a value: the headers of an ASGI scope, or the metadata of a gRPC call."""


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's session: its token, and eight hexadecimal digits that differ for each key."""

    id: str
    token: str


class Keys:
    """The API keys of a server. Only their SHA-256 is kept, so that no memory dump contains a key."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def authorize(self, headers: HeaderPairs) -> None:
        """Accept a request with exactly one valid key: `Authorization: Bearer KEY`, `X-API-Key: KEY`, or Basic with the key as
        the password and any user name.

        Raises UnauthorizedError otherwise. Several keys are refused since a proxy may have checked another one than this
        server would. The comparison takes constant time.
        """
        given = _sent_keys(headers)
        if not given:
            raise UnauthorizedError("this server needs an API key", hint="send `Authorization: Bearer KEY`")
        if len(given) > 1:
            raise UnauthorizedError("the request has several API keys", hint="send one")
        self._find(given[0])

    def open_session(self, key: str, until_s: int) -> Session:
        """Return a browser session that ends at `until_s`, seconds since 1970-01-01 UTC.

        The token is the time and its HMAC under the key's digest: it does not reveal the key, needs no memory, outlives a
        restart, and ends with its key. Raises UnauthorizedError for a key that is not one of the server's.
        """
        digest = self._find(key.strip().encode())
        return Session(hmac.new(digest, b"demi session", hashlib.sha256).hexdigest()[:8], _token(digest, until_s))

    def check_session(self, token: str, now_s: float) -> bool:
        """Return whether a token is of a session that was opened with one of the keys and has not ended."""
        until = token.partition(".")[0]
        if not (until.isascii() and until.isdigit() and len(until) < 12) or int(until) <= now_s:
            return False
        sent = token.encode("utf-8", "replace")
        matches = [hmac.compare_digest(sent, _token(known, int(until)).encode()) for known in self._digests]
        return any(matches)

    def _find(self, key: bytes) -> bytes:
        """Return the digest of a valid key. Raises UnauthorizedError for any other."""
        digest = _digest(key)
        matches = [
            known for known in self._digests if hmac.compare_digest(digest, known)
        ]  # with every key: no early exit
        if not matches:
            raise UnauthorizedError("the API key is not one of this server's")
        return matches[0]


def read_keys(path: Path) -> Keys:
    """Read keys from a file, one per line; blank lines and lines that begin with `#` are skipped.

    Raises InputError if the file cannot be read, contains no key, or contains one that cannot be sent in a header. Warns
    about a world-readable file and about short keys.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"the API keys cannot be read: {reason}", where=str(path)) from error
    keys = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
    if not keys:
        raise InputError(
            "the file contains no API key",
            where=str(path),
            hint="write one key per line; create one with: openssl rand -hex 32",
        )
    for number, key in enumerate(keys, 1):
        if not all("!" <= character <= "~" for character in key):
            raise InputError(f"key {number} contains a space or a character beyond ASCII", where=str(path))
    if mode & stat.S_IROTH:
        log.warning("everyone on this machine may read the API keys: chmod o-r %s", path)
    if any(len(key) < SHORTEST for key in keys):
        log.warning("an API key in %s has fewer than %d characters and can be guessed", path, SHORTEST)
    return Keys(keys)


def require_key(settings: ServeSettings, keys: Keys | None, *, is_local: bool) -> None:
    """Raise InputError if clients on other machines could control models or shared memory without a key."""
    wanted = {
        "--allow-model-control": settings.allow_model_control,
        "--allow-shared-memory": settings.allow_shared_memory,
    }
    if keys or is_local or settings.allow_without_key or not any(wanted.values()):
        return
    flags = " and ".join(flag for flag, is_on in wanted.items() if is_on)
    raise InputError(
        f"{flags} on {settings.host} would be open to everyone who can reach this server, since it requires no API key",
        hint="give keys with --api-key-file, or allow everyone with --allow-without-key",
    )


def warn_without_key(settings: ServeSettings, keys: Keys | None, *, is_local: bool) -> None:
    """Log a warning if clients on other machines can use this server without a key."""
    if keys is None and not is_local:
        log.warning(
            "everyone who can reach %s may use this server and read its metrics: give keys with --api-key-file, "
            "or serve on --host 127.0.0.1 behind a proxy",
            settings.host,
        )


def _sent_keys(headers: HeaderPairs) -> list[bytes]:
    keys = []
    for name, value in headers:
        if name in _API_KEY:
            keys.append(_bytes(value).strip())
        elif name in _AUTHORIZATION:
            scheme, _, key = _bytes(value).strip().partition(b" ")
            if scheme.lower() == b"bearer":
                keys.append(key.strip())
            elif scheme.lower() == b"basic":
                keys.append(_password(key.strip()))
    return keys


def _password(credentials: bytes) -> bytes:
    """Return the password in the credentials of the Basic scheme (RFC 7617); empty, which is no key, for invalid ones."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "replace")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _token(digest: bytes, until_s: int) -> str:
    return f"{until_s}.{hmac.new(digest, b'demi console %d' % until_s, hashlib.sha256).hexdigest()}"
