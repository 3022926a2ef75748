"""Everything that `demi serve` answers, answered by replicas behind Ray's HAProxy."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from demi.server.grpc.health import HealthCheckRequest, HealthCheckResponse
from tests.ray.conftest import KEY, Collector
from tests.server.fakes import message
from tests.server.grpc_client import HEALTH, X, given
from tests.server.test_service import ask, open_scale

ASKED = message([1.0, 2.0, 3.0], shape=[1, 3])
GRPC = "127.0.0.1:9000"


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for a condition of the cluster."""
    stop = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < stop, "the condition did not come true"
        time.sleep(0.2)


def states(client: httpx.Client) -> dict[str, str]:
    """Return the state of each model over all replicas."""
    return {entry["name"]: entry["state"] for entry in client.post("/v2/repository/index").json()}


def count(client: httpx.Client, model: str) -> int:
    """Return the requests that all replicas have answered."""
    (stats,) = client.get(f"/v2/models/{model}/stats").json()["model_stats"]
    return int(stats["inference_stats"]["success"]["count"])


def test_json_is_answered(client):
    """With the answer of an ordinary server."""
    answer = client.post("/v2/models/scale/infer", content=ASKED)

    assert [2.0, 6.0, 12.0] == answer.json()["outputs"][0]["data"]


def test_binary_tensors_are_answered(cluster):
    """An unmodified tritonclient sends and reads them."""
    client = triton_http.InferenceServerClient("127.0.0.1:8000")
    asked = triton_http.InferInput("x", [1, 3], "FP32")
    asked.set_data_from_numpy(X)

    assert np.array_equal([[2, 6, 12]], client.infer("scale", [asked]).as_numpy("y"))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v2/models/nope/infer", ASKED),
        ("GET", "/v2/models/scale/infer", b""),
        ("POST", "/v2/models/scale/infer", b"{"),
        ("POST", "/v2/models/scale/infer", message([1.0], shape=[1, 1])),
        ("GET", "/nowhere", b""),
    ],
)
def test_errors_are_those_of_an_ordinary_server(client, tmp_path, method, path, body):
    """Status and body."""
    theirs = client.request(method, path, content=body)
    ours = ask(open_scale(tmp_path), method, path, content=body)

    assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json())


def test_the_clients_request_id_is_echoed(client):
    """One id for the logs of Ray and of Demi."""
    answer = client.post("/v2/models/scale/infer", content=ASKED, headers={"x-request-id": "mine"})

    assert "mine" == answer.headers["x-request-id"]


def test_statistics_are_those_of_all_replicas(client):
    """Whichever replica answers, the count goes up by every request."""
    before = count(client, "scale")
    for _ in range(20):
        client.post("/v2/models/scale/infer", content=ASKED)

    assert [before + 20] * 3 == [count(client, "scale") for _ in range(3)]


def test_metrics_are_labelled_with_their_replica(client):
    """Both replicas have answered."""
    for _ in range(20):
        client.post("/v2/models/scale/infer", content=ASKED)
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}

    samples = families["nv_inference_request_success"].samples
    answered = {each.labels["replica"]: each.value for each in samples if each.labels["model"] == "scale"}
    assert 2 == len(answered)
    assert 0 < min(answered.values())


def test_accuracy_is_joined_and_the_share_is_set_everywhere(client):
    """Samples of both replicas are in one answer."""
    asked = message([1.0, 2.0, 3.0], shape=[1, 3])
    client.post("/v2/models/mixed/accuracy", json={"shadow": 1.0}).raise_for_status()

    def enough() -> bool:
        for _ in range(10):
            client.post("/v2/models/mixed/infer", content=asked)
        return bool(client.get("/v2/models/mixed/accuracy").json()["samples"] >= 20)

    until(enough)
    found = client.get("/v2/models/mixed/accuracy").json()
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    compared = [each.value for each in families["demi_shadow_samples"].samples if each.labels["model"] == "mixed"]
    assert 0 < min(compared)
    assert found["samples"] <= sum(compared)
    client.post("/v2/models/mixed/accuracy", json={"shadow": 0.0}).raise_for_status()


def test_drift_is_decided_for_all_replicas(client):
    """Both go over the budget with the same verdict, and move a share of their traffic to FP32."""
    client.post("/v2/models/clumsy/accuracy", json={"shadow": 1.0}).raise_for_status()

    def over() -> list[float]:
        for _ in range(10):
            client.post("/v2/models/clumsy/infer", content=ASKED).raise_for_status()
        families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
        changes = [each for each in families["demi_drift_changes"].samples if each.labels["model"] == "clumsy"]
        return [each.value for each in changes if each.labels["to"] == "over"]

    until(lambda: over() == [1.0, 1.0], timeout_s=40)
    found = client.get("/v2/models/clumsy/accuracy").json()
    client.post("/v2/models/clumsy/accuracy", json={"shadow": 0.0}).raise_for_status()

    assert ("over", "fp32") == (found["state"], found["serving"])
    first, second = found["changes"]
    assert first == second


def test_models_are_unloaded_and_loaded_everywhere(client):
    """A replica that starts in between does not serve the model either."""
    from bench.scale.cluster import kill, replicas, wait_for_replicas

    client.post("/v2/repository/models/logarithm/unload").raise_for_status()
    kill(replicas()[0])
    wait_for_replicas(2)
    until(lambda: client.get("/v2/health/ready").status_code == 200)

    answers = {client.post("/v2/models/logarithm/infer", content=ASKED).status_code for _ in range(10)}
    assert {503} == answers
    until(lambda: states(client)["logarithm"] == "UNAVAILABLE")
    client.post("/v2/repository/models/logarithm/load").raise_for_status()
    assert {200} == {client.post("/v2/models/logarithm/infer", content=ASKED).status_code for _ in range(10)}
    assert "READY" == states(client)["logarithm"]


def test_grpc_answers_and_refuses(cluster):
    """An unmodified tritonclient, to the application at `/`; status codes are Demi's."""
    client = triton.InferenceServerClient(GRPC)
    headers = {"application": "default"}

    answer = client.infer("scale", [given("x", X, "FP32")], headers=headers)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("nope", [given("x", X, "FP32")], headers=headers)

    assert np.array_equal([[2, 6, 12]], answer.as_numpy("y"))
    assert "StatusCode.NOT_FOUND" == caught.value.status()
    assert "unknown model `nope`" in caught.value.message()


def test_grpc_streams(cluster):
    """Requests of one stream are answered in order, a wrong one by an error message."""
    client = triton.InferenceServerClient(GRPC)
    found: list[tuple[object, object]] = []
    client.start_stream(lambda result, error: found.append((result, error)), headers={"application": "default"})
    for name in ("scale", "nope", "scale"):
        client.async_stream_infer(name, [given("x", X, "FP32")])
    until(lambda: len(found) == 3)
    client.stop_stream()

    assert [True, False, True] == [error is None for _, error in found]
    assert "unknown model" in str(found[1][1])


def test_grpc_statistics_are_those_of_all_replicas(client):
    """As over HTTP."""
    over_http = count(client, "scale")
    stats = triton.InferenceServerClient(GRPC).get_inference_statistics("scale", headers={"application": "default"})

    assert over_http == stats.model_stats[0].inference_stats.success.count


def test_grpc_health(cluster):
    """The standard health service answers, for probes of load balancers."""
    with grpc.insecure_channel(GRPC) as channel:
        check = channel.unary_unary(
            f"/{HEALTH}/Check", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
        )
        answer = check(HealthCheckRequest(), metadata=(("application", "default"),), timeout=20)

    assert HealthCheckResponse.SERVING == answer.status


def test_keys_are_required_below_a_prefix(client):
    """Over HTTP, except for health."""
    path = "/keyed/v2/models/scale/infer"

    assert 401 == client.post(path, content=ASKED).status_code
    assert 200 == client.post(path, content=ASKED, headers={"x-api-key": KEY}).status_code
    assert 200 == client.get("/keyed/v2/health/live").status_code
    assert 401 == client.get("/keyed/metrics").status_code


def test_keys_are_required_over_grpc(cluster):
    """The same keys."""
    client = triton.InferenceServerClient(GRPC)

    with pytest.raises(InferenceServerException) as caught:
        client.infer("scale", [given("x", X, "FP32")], headers={"application": "keyed"})
    answer = client.infer("scale", [given("x", X, "FP32")], headers={"application": "keyed", "x-api-key": KEY})

    assert "StatusCode.UNAUTHENTICATED" == caught.value.status()
    assert answer.as_numpy("y") is not None


def test_control_is_refused_where_it_is_off(client):
    """Each application has its own settings."""
    answer = client.post("/keyed/v2/repository/models/scale/unload", headers={"x-api-key": KEY})

    assert 403 == answer.status_code


def test_inferences_are_traced(client, collector: Collector):
    """Below the client's trace, by the replica that answered."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"x-api-key": KEY, "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    client.post("/keyed/v2/models/scale/infer", content=ASKED, headers=headers).raise_for_status()

    until(lambda: any(bytes.fromhex(trace) in body for body in collector.received))


def test_bytes_beyond_the_limit_are_refused(client):
    """Demi's limit, since HAProxy has none."""
    answer = client.post("/v2/models/scale/infer", content=b"x" * (65 * 2**20))

    assert 413 == answer.status_code
