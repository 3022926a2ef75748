"""Trace and log settings through tritonclient: readable, not changeable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from demi.server.errors import ForbiddenError, RequestError
from demi.server.settings import ServeSettings
from demi.server.telemetry.triton_settings import (
    check_unchanged,
    log_settings,
    trace_settings,
)

TRACES = {
    "trace_level": ["OFF"],
    "trace_rate": "1",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "opentelemetry",
}
LOGS = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "console",
}


@pytest.fixture
def over_http(server) -> Iterator[tritonclient.http.InferenceServerClient]:
    """Open a tritonclient over HTTP."""
    with tritonclient.http.InferenceServerClient(urlsplit(server.url).netloc) as client:
        yield client


@pytest.fixture
def over_grpc(server) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    """Open a tritonclient over gRPC."""
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        yield client


def failure(work: Callable[[], object]) -> tuple[str, str]:
    """Return status and message of the error that tritonclient raises."""
    with pytest.raises(InferenceServerException) as caught:
        work()
    return str(caught.value.status()).removeprefix("StatusCode."), caught.value.message()


def traced(response: service_pb2.TraceSettingResponse) -> dict[str, list[str]]:
    """Return the trace settings of a message."""
    return {name: list(setting.value) for name, setting in response.settings.items()}


def logged(response: service_pb2.LogSettingsResponse) -> dict[str, object]:
    """Return the log settings of a message."""
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in response.settings.items()}


def test_over_http(over_http):
    """Settings are readable over HTTP, for the server and for a model."""
    assert TRACES == over_http.get_trace_settings()
    assert TRACES == over_http.get_trace_settings("scale")
    assert LOGS == over_http.get_log_settings()
    assert {"trace", "logging"} <= set(over_http.get_server_metadata()["extensions"])


def test_over_grpc(over_grpc):
    """Settings are readable over gRPC."""
    traces = {name: value if isinstance(value, list) else [value] for name, value in TRACES.items()}

    assert traces == traced(over_grpc.get_trace_settings())
    assert traces == traced(over_grpc.get_trace_settings("scale"))
    assert LOGS == logged(over_grpc.get_log_settings())
    assert LOGS == logged(over_grpc.update_log_settings({"log_info": True}))


CHANGES = [
    lambda client: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
    lambda client: client.update_trace_settings("scale", {"trace_rate": "5"}),
    lambda client: client.update_log_settings({"log_verbose_level": 1}),
    lambda client: client.update_log_settings({"log_info": False}),
    lambda client: client.update_log_settings({"log_file": "/tmp/log"}),
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_refused(over_http, over_grpc, change):
    """Changes are refused, naming the flag that sets the value."""
    for client, status in ((over_http, "403"), (over_grpc, "PERMISSION_DENIED")):
        found, text = failure(lambda client=client: change(client))

        assert status == found
        assert "clients cannot change the" in text
        assert "start it with --" in text
    assert (TRACES, LOGS) == (over_http.get_trace_settings(), over_http.get_log_settings())


def test_what_changes_nothing(over_http, over_grpc):
    """Requests that change nothing are answered as Triton answers an update."""
    assert TRACES == over_http.update_trace_settings(settings={"trace_level": "OFF", "trace_rate": None})
    assert TRACES == over_http.update_trace_settings("scale", {"trace_level": ["OFF"]})
    assert LOGS == over_http.update_log_settings({"log_error": True, "log_verbose_level": 0})
    assert ["OFF"] == traced(over_grpc.update_trace_settings(settings={"trace_level": None, "trace_count": "-1"}))[
        "trace_level"
    ]


def test_unknown_settings_and_models(over_http, over_grpc):
    """Unknown settings and unknown models are client errors."""
    for client, bad, missing in ((over_http, "400", "404"), (over_grpc, "INVALID_ARGUMENT", "NOT_FOUND")):
        assert bad == failure(lambda client=client: client.update_trace_settings(settings={"colour": "red"}))[0]
        assert bad == failure(lambda client=client: client.update_log_settings({"log_colour": True}))[0]
        assert missing == failure(lambda client=client: client.get_trace_settings("nobody"))[0]


@pytest.mark.parametrize("body", [b"[]", b"{", b'"trace_level"', b"[" * 100_000])
def test_invalid_bodies(client, body):
    """A body that is not a JSON object is 400."""
    assert 400 == client.post("/v2/logging", content=body).status_code
    assert 400 == client.post("/v2/trace/setting", content=body).status_code


def test_settings_reflect_the_flags():
    """The settings reflect --otel and --log-level."""
    assert ["TIMESTAMPS"] == trace_settings(ServeSettings(otel=True))["trace_level"]
    assert ["TIMESTAMPS"] == trace_settings(ServeSettings(otel_endpoint="http://c/v1/traces"))["trace_level"]
    found = [log_settings(ServeSettings(log_level=level)) for level in ("debug", "info", "warning", "error")]
    assert [1, 0, 0, 0] == [each["log_verbose_level"] for each in found]
    assert [True, True, False, False] == [each["log_info"] for each in found]
    assert [True, True, True, False] == [each["log_warning"] for each in found]


def test_true_is_not_one():
    """1 differs from true, and 0 from false."""
    own = log_settings(ServeSettings())

    check_unchanged("log", {"log_info": True, "log_verbose_level": 0}, own)
    for asked in ({"log_info": 1}, {"log_verbose_level": False}, {"log_file": [""], "log_error": "true"}):
        with pytest.raises(ForbiddenError):
            check_unchanged("log", asked, own)
    with pytest.raises(RequestError):
        check_unchanged("log", {"log": True}, own)
