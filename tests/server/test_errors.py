"""The one table from errors to HTTP and gRPC."""

from __future__ import annotations

import logging

import grpc
import orjson
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
    error_answer,
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
def test_every_error_has_its_status_and_the_same_body(error, status, code):
    """Status and code follow from the class, or its nearest base; the body is an `error` and nothing else."""
    answer = error_answer(error)

    assert status == answer.status
    assert code == status_of(error).grpc
    assert ["error"] == list(orjson.loads(answer.body))
    assert "application/json" == answer.headers["content-type"]


def test_the_text_has_the_hint_but_no_path():
    """A client reads what to do next; where a file lies on the server is none of its business."""
    body = orjson.loads(error_answer(TensorError("too short", where="/srv/models/m", hint="send more")).body)

    assert {"error": "too short; send more"} == body


def test_headers_of_a_wrong_method_a_missing_key_and_a_busy_server():
    """405 says what is allowed; 401 what to send; 503 when to come back, unless waiting would not help."""
    assert "POST" == error_answer(MethodError("x", "POST")).headers["allow"]
    assert "1" == error_answer(UnavailableError("x")).headers["retry-after"]
    assert "Bearer" == error_answer(UnauthorizedError("x")).headers["www-authenticate"]
    assert "retry-after" not in error_answer(UnavailableError("x", retry_after_s=None)).headers


def test_the_detail_of_a_failure_is_in_the_log_only(caplog):
    """A 500 names an id, under which the log has the detail."""
    with caplog.at_level(logging.ERROR, "demi.server"):
        text = orjson.loads(error_answer(InferenceError("secret detail")).body)["error"]
    request_id = text.rsplit(" ", 1)[-1]

    assert "secret" not in text
    assert 12 == len(request_id)
    assert "request failed: secret detail" in caplog.text
    assert request_id == caplog.records[0].request_id


def test_names_that_are_not_unicode_do_not_break_the_answer():
    """An error about a name with a lone surrogate is still JSON."""
    assert {"error": "unknown model `?`"} == orjson.loads(error_answer(NotFoundError("unknown model `\udc80`")).body)


def test_every_code_is_one_of_grpc():
    """The table writes codes by name, since only gRPC's own room imports gRPC."""
    assert {status.grpc for status in STATUS.values()} <= {code.name for code in grpc.StatusCode}
