"""An HTTP answer, and the answer to send for an error.

The body of every error is `{"error": "text"}`: the protocol's clients parse the body of any status but 200.
"""

from __future__ import annotations

import msgspec
import orjson

from demi.server.errors import MethodError, UnauthorizedError, UnavailableError, error_text, status_of
from demi.server.request_ids import HEADER, make_id


class HttpAnswer(msgspec.Struct, frozen=True):
    """A status, a body and its headers; Content-Length is added when the answer is sent."""

    status: int
    body: bytes
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    cookies: tuple[str, ...] = ()
    """Values of `Set-Cookie` headers."""


def error_answer(error: Exception, request_id: str = "") -> HttpAnswer:
    """Return the answer for any error, with the client's request id or a new one."""
    request_id = request_id or make_id()
    headers = {"content-type": "application/json", HEADER: request_id, **_headers(error)}
    return HttpAnswer(status_of(error).http, error_body(error_text(error, request_id)), headers)


def error_body(text: str) -> bytes:
    """Return `{"error": text}` as JSON; lone surrogates, which JSON cannot encode, are replaced."""
    return orjson.dumps({"error": text.encode("utf-8", "replace").decode()})


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, MethodError):
        return {"allow": error.allow}
    if isinstance(error, UnauthorizedError):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, UnavailableError):
        wait = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
        return {**wait, "connection": "close"} if error.ends else wait
    return {}
