"""The table from errors to HTTP status and gRPC code."""

from __future__ import annotations

import grpc
import pytest

from demi.errors import DeviceError, InferenceError, InputError, TensorError
from demi.server.errors import (
    STATUS,
    BodyTooLargeError,
    DeadlineError,
    EncodingError,
    ForbiddenError,
    MethodError,
    NotFoundError,
    RequestError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
    status_of,
)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InputError("x"), 400, "INVALID_ARGUMENT"),
        (RequestError("x"), 400, "INVALID_ARGUMENT"),
        (TensorError("x"), 400, "INVALID_ARGUMENT"),
        (UnauthorizedError("x"), 401, "UNAUTHENTICATED"),
        (NotFoundError("x"), 404, "NOT_FOUND"),
        (MethodError("x", "GET"), 405, "UNIMPLEMENTED"),
        (BodyTooLargeError("x"), 413, "RESOURCE_EXHAUSTED"),
        (EncodingError("x"), 415, "UNIMPLEMENTED"),
        (ForbiddenError("x"), 403, "PERMISSION_DENIED"),
        (UnsupportedError("x"), 501, "UNIMPLEMENTED"),
        (InferenceError("x"), 500, "INTERNAL"),
        (DeviceError("x"), 500, "INTERNAL"),
        (ValueError("x"), 500, "INTERNAL"),
        (UnavailableError("x"), 503, "UNAVAILABLE"),
        (DeadlineError("x"), 504, "DEADLINE_EXCEEDED"),
    ],
)
def test_status_and_code_of_each_error(error, status, code):
    """Status and code follow from the class, or from its nearest base."""
    assert (status, code) == status_of(error)


def test_every_code_is_one_of_grpc():
    """The table names codes as text, since only `server/grpc` imports grpcio."""
    assert {status.grpc for status in STATUS.values()} <= {code.name for code in grpc.StatusCode}
