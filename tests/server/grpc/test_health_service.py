"""The health service for load balancers and Kubernetes."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import grpc
import pytest

from demi.server.grpc.health import HealthCheckRequest, HealthCheckResponse
from tests.server.bundles import SCALE, write_bundle
from tests.server.grpc_client import HEALTH, method
from tests.server.processes import serving

NAMES = {value: name for name, value in HealthCheckResponse.ServingStatus.items()}


@pytest.fixture
def channel(server) -> Iterator[grpc.Channel]:
    """Open a plain channel to the shared server."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.mark.parametrize(("service", "status"), [("", "SERVING"), ("scale", "SERVING"), ("damaged", "NOT_SERVING")])
def test_check(channel, service, status):
    """Check reports the server, a model, and a model that failed to load."""
    answer = method(channel, "Check", HEALTH)(HealthCheckRequest(service=service))

    assert status == NAMES[answer.status]


def test_check_of_an_unknown_model(channel):
    """An unknown model is NOT_FOUND, as the health protocol requires."""
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "Check", HEALTH)(HealthCheckRequest(service="nope"))

    assert grpc.StatusCode.NOT_FOUND == caught.value.code()


def test_watch(tmp_path):
    """Watch reports the status at once and at each change, and ends with the server."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    with serving(tmp_path) as server, grpc.insecure_channel(server.grpc) as channel:
        watching = {name: method(channel, "Watch", HEALTH)(HealthCheckRequest(service=name)) for name in ("", "no")}
        first = {name: NAMES[next(states).status] for name, states in watching.items()}
        code = server.stop(signal.SIGTERM)
        rest = [NAMES[state.status] for state in watching[""]]

    assert {"": "SERVING", "no": "SERVICE_UNKNOWN"} == first
    assert (0, ["NOT_SERVING"]) == (code, rest)
