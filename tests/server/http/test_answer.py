"""Error answers over HTTP: body, headers, and what stays in the log."""

from __future__ import annotations

import logging

import orjson
import pytest

from demi.errors import InferenceError, TensorError
from demi.server.errors import MethodError, NotFoundError, UnauthorizedError, UnavailableError
from demi.server.http.answer import error_answer


@pytest.mark.parametrize(("error", "status"), [(NotFoundError("x"), 404), (ValueError("x"), 500)])
def test_error_body_has_one_member(error, status):
    """The body is `{"error": ...}` with the status of the error's class."""
    answer = error_answer(error)

    assert status == answer.status
    assert ["error"] == list(orjson.loads(answer.body))
    assert "application/json" == answer.headers["content-type"]


def test_error_text_has_the_hint_but_no_path():
    """The message contains the hint, and no path on the server."""
    body = orjson.loads(error_answer(TensorError("too short", where="/srv/models/m", hint="send more")).body)

    assert {"error": "too short; send more"} == body


def test_error_headers():
    """405 has Allow, 401 WWW-Authenticate, and 503 Retry-After unless waiting would not help."""
    assert "POST" == error_answer(MethodError("x", "POST")).headers["allow"]
    assert "1" == error_answer(UnavailableError("x")).headers["retry-after"]
    assert "Bearer" == error_answer(UnauthorizedError("x")).headers["www-authenticate"]
    assert "retry-after" not in error_answer(UnavailableError("x", retry_after_s=None)).headers


def test_details_of_an_internal_error_are_only_in_the_log(caplog):
    """A 500 names the request id of the log record that has the details."""
    with caplog.at_level(logging.ERROR, "demi.server"):
        text = orjson.loads(error_answer(InferenceError("secret detail")).body)["error"]
    request_id = text.rsplit(" ", 1)[-1]

    assert "secret" not in text
    assert 12 == len(request_id)
    assert "request failed: secret detail" in caplog.text
    assert request_id == caplog.records[0].request_id


def test_error_about_a_lone_surrogate_is_valid_json():
    """A lone surrogate in a name is replaced."""
    assert {"error": "unknown model `?`"} == orjson.loads(error_answer(NotFoundError("unknown model `\udc80`")).body)
