"""The server's error classes, and the one table that maps them to HTTP status and gRPC code."""

from __future__ import annotations

import logging
from typing import NamedTuple

from demi.errors import (
    CrashError,
    DemiError,
    InferenceError,
    InputError,
    StoppedError,
)
from demi.server.path_redaction import redact_paths
from demi.server.request_ids import make_id

log = logging.getLogger("demi.server")

LIST_HINT = "POST /v2/repository/index lists the models"
"""Hint for unknown models; the path exists with every setting."""


class RequestError(InputError):
    """The request does not follow the protocol."""


class NotFoundError(InputError):
    """The path, model or version does not exist."""


class UnauthorizedError(InputError):
    """The request carries none of the server's API keys."""


class ForbiddenError(InputError):
    """The server's settings do not allow this request."""


class MethodError(InputError):
    """The path does not support the method; `allow` lists those it supports."""

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTooLargeError(InputError):
    """The body exceeds the limit, either as sent or once decompressed."""


class EncodingError(InputError):
    """The content encoding is not supported."""


class UnsupportedError(InputError):
    """The server does not implement this part of the protocol."""


class UnavailableError(DemiError):
    """The request cannot be served now: a model is loading or failed to load, a queue is full, or the server stops.

    `retry_after_s` is None if waiting would not help. `ends` is set while shutting down: the connection is closed as
    well, so that the client's next request reaches another server.
    """

    def __init__(self, message: str, *, retry_after_s: int | None = 1, ends: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.ends = ends


class OverloadedError(UnavailableError):
    """All requests in flight together hold as many bytes as the server allows."""


class NonFiniteError(InferenceError):
    """A half-precision output holds NaN or infinity, and there is no FP32 model to fall back to."""


class DeadlineError(DemiError):
    """The request's deadline passed before its answer was ready."""


class Status(NamedTuple):
    """The HTTP status of an error, and the name of its gRPC code."""

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
"""A class without a row of its own uses that of its nearest base."""

_CLIENT_ERRORS = (RequestError, NotFoundError, MethodError)
"""Errors that quote what the client has sent. Paths in them are the client's own and stay unredacted."""


def status_of(error: Exception) -> Status:
    """Return the row of an error's class, or of its nearest base with one."""
    return next(STATUS[base] for base in type(error).__mro__ if base in STATUS)


def error_text(error: Exception, request_id: str = "") -> str:
    """Return the message of an error for a client.

    The details of an internal error (status 500) go to the log only; the message then names the request id to look for.
    """
    is_public = status_of(error).http != 500 or isinstance(error, NonFiniteError)
    return describe(error) if is_public else _log_internal(error, request_id or make_id())


def describe(error: Exception) -> str:
    """Return message and hint in one line, for a client: paths on the server are redacted."""
    text = full_text(error)
    return text if isinstance(error, _CLIENT_ERRORS) else redact_paths(text)


def full_text(error: Exception) -> str:
    """Return message and hint in one line, for the log."""
    if not isinstance(error, DemiError):
        return str(error) or type(error).__name__
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _log_internal(error: Exception, request_id: str) -> str:
    log.error("request failed: %s", error, exc_info=error, extra={"request_id": request_id})
    what = "the model failed on this request" if isinstance(error, InferenceError) else "the server failed"
    return f"{what}; the server's log has the details under request id {request_id}"
