"""What goes wrong on the wire, and the only table from an error's class to its HTTP status and its gRPC code.

Every error answer is `{"error": "text"}`: the protocol's clients parse the body of whatever is not 200.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from demi.errors import (
    CrashError,
    DemiError,
    InferenceError,
    InputError,
    StoppedError,
)
from demi.server.path_redaction import without_places
from demi.server.request_ids import HEADER, make_id

log = logging.getLogger("demi.server")


class RequestError(InputError):
    """A request that is not as the protocol has it."""


class NotFoundError(InputError):
    """No such path, model or version."""


class UnauthorizedError(InputError):
    """A request without one of the server's API keys."""


class ForbiddenError(InputError):
    """A path that this server does not offer to anyone, by its settings."""


class MethodError(InputError):
    """A path that does not answer this method; `allow` lists the ones it does."""

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTooLargeError(InputError):
    """A body beyond the limit, as sent or once decompressed."""


class EncodingError(InputError):
    """A content encoding the server does not speak."""


class UnsupportedError(InputError):
    """A part of the protocol that this server does not have."""


class UnavailableError(DemiError):
    """Not now: loading, shutting down, a full queue, or a model that failed to load.

    `retry_after_s` is None where waiting would not help. `ends` says that what the client speaks to will soon be gone:
    its connection is closed, so that its next request goes elsewhere.
    """

    def __init__(self, message: str, *, retry_after_s: int | None = 1, ends: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.ends = ends


class OverloadedError(UnavailableError):
    """The requests under way hold as much as they may, all together."""


class NonFiniteError(InferenceError):
    """A half-precision answer holds NaN or infinite values, and there is no FP32 model to answer instead."""


class DeadlineError(DemiError):
    """The request's time ran out before its answer was there."""


class Status(NamedTuple):
    """How an error is told over HTTP, and over gRPC by the name of its code."""

    http: int
    grpc: str


STATUS: dict[type[Exception], Status] = {
    InputError: Status(400, "INVALID_ARGUMENT"),
    UnauthorizedError: Status(401, "UNAUTHENTICATED"),
    ForbiddenError: Status(403, "PERMISSION_DENIED"),
    NotFoundError: Status(404, "NOT_FOUND"),
    MethodError: Status(405, "UNIMPLEMENTED"),
    BodyTooLargeError: Status(413, "RESOURCE_EXHAUSTED"),
    EncodingError: Status(415, "UNIMPLEMENTED"),
    InferenceError: Status(500, "INTERNAL"),
    StoppedError: Status(504, "DEADLINE_EXCEEDED"),
    UnsupportedError: Status(501, "UNIMPLEMENTED"),
    UnavailableError: Status(503, "UNAVAILABLE"),
    OverloadedError: Status(503, "RESOURCE_EXHAUSTED"),
    CrashError: Status(503, "UNAVAILABLE"),
    DeadlineError: Status(504, "DEADLINE_EXCEEDED"),
    Exception: Status(500, "INTERNAL"),
}
"""A class that is not here answers like its nearest base."""


_CLIENTS_WORDS = (RequestError, NotFoundError, MethodError)
"""Errors that speak of what the client itself has sent."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A status, a body and the headers that belong to it; Content-Length is added on the way out."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def status_of(error: Exception) -> Status:
    """How an error is told: the row of its class, or of the nearest base that has one."""
    return next(STATUS[base] for base in type(error).__mro__ if base in STATUS)


def error_answer(error: Exception, request_id: str = "") -> HttpAnswer:
    """The HTTP answer to send for any error, with the request's id, made where it has none."""
    request_id = request_id or make_id()
    headers = {"content-type": "application/json", HEADER: request_id, **_headers(error)}
    return HttpAnswer(status_of(error).http, error_body(error_text(error, request_id)), headers)


def error_text(error: Exception, request_id: str = "") -> str:
    """What a client reads of any error. A failure of ours keeps its detail in the log, under the id that the text names."""
    told = status_of(error).http != 500 or isinstance(error, NonFiniteError)
    return describe(error) if told else _report(error, request_id or make_id())


def describe(error: Exception) -> str:
    """An error in one line for a client: the message and the hint, never a path on the server."""
    text = full_text(error)
    return text if isinstance(error, _CLIENTS_WORDS) else without_places(text)


def full_text(error: Exception) -> str:
    """An error in one line for the log: the message and the hint."""
    if not isinstance(error, DemiError):
        return str(error) or type(error).__name__
    return f"{error.message}; {error.hint}" if error.hint else error.message


def error_body(text: str) -> bytes:
    """`{"error": text}`; a lone surrogate in a name someone sent must not break the answer about it."""
    return orjson.dumps({"error": text.encode("utf-8", "replace").decode()})


def _report(error: Exception, request_id: str) -> str:
    log.error("request failed: %s", error, exc_info=error, extra={"request_id": request_id})
    what = "the model failed on this request" if isinstance(error, InferenceError) else "the server failed"
    return f"{what}; the log has the detail under request id {request_id}"


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, MethodError):
        return {"allow": error.allow}
    if isinstance(error, UnauthorizedError):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, UnavailableError):
        wait = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
        return {**wait, "connection": "close"} if error.ends else wait
    return {}
