"""Versions over the wire: a canary, a rollback and one version's unloading, over HTTP and gRPC, while requests come."""

from __future__ import annotations

import threading
import time
from collections import Counter
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from demi.bundles.traffic import Traffic, read_traffic, write_traffic
from tests.server.bundles import SCALE, write_bundle
from tests.server.http.test_infer import ROW
from tests.server.processes import serving

INFER = "/v2/models/scale/infer"
RULES = "/v2/repository/models/scale"


@pytest.fixture
def two(tmp_path):
    """Return a folder with versions 1 and 2 of a model."""
    for version in (1, 2):
        write_bundle(tmp_path / "scale" / str(version), SCALE, version=version)
    return tmp_path


def answering(http, times=1, **headers):
    """Return how many requests each version answers."""
    answers = [http.post(INFER, content=ROW, headers=headers) for _ in range(times)]
    assert {200} == {answer.status_code for answer in answers}
    return Counter(answer.json()["model_version"] for answer in answers)


def test_a_canary_and_its_rollback_while_requests_come(two):
    """No request fails, the shares are about right, and the comparison shows both sides."""
    with serving(two, "--allow-model-control") as server, httpx.Client(base_url=server.url) as http:
        failed, stop = [], threading.Event()

        def keep_asking():
            with httpx.Client(base_url=server.url) as own:
                while not stop.is_set():
                    if (answer := own.post(INFER, content=ROW)).status_code != 200:
                        failed.append(answer.text)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        begun = http.post(f"{RULES}/canary", json={"version": "2", "percent": 50})
        shares = answering(http, 200)
        compared = http.get("/v2/models/scale/versions").json()
        metrics = http.get("/metrics").text
        back = http.post(f"{RULES}/rollback").json()
        after = answering(http, 50)
        stop.set()
        asking.join()

    assert [] == failed
    assert (200, True) == (begun.status_code, begun.json()["saved"])
    assert 50 < shares["2"] < 150, "about half of 200: beyond this once in 10^12 runs"
    assert [50, 50] == [each["percent"] for each in compared["versions"]]
    assert all(each["requests"] > 0 and each["p99_ms"] > 0 for each in compared["versions"])
    assert 'demi_traffic_percent{model="scale",precision="fp16-in-fp32",version="2"} 50.0' in metrics
    assert (None, "1") == (back["canary"], back["stable"])
    assert Counter({"1": 50}) == after
    assert Traffic(stable=1) == read_traffic(two / "scale")


def test_headers_and_aliases_over_both_wires(two):
    """A header sends a request to the canary, and an alias is a version, for Triton's clients as well."""
    with serving(two, "--allow-model-control") as server, httpx.Client(base_url=server.url) as http:
        rules = {"version": 2, "percent": 0, "header": "x-canary=yes"}
        assert 200 == http.post(f"{RULES}/canary", json=rules).status_code
        by_header = [answering(http, **headers) for headers in ({}, {"x-canary": "yes"}, {"x-canary": "no"})]
        over_http, over_grpc = [], []
        for client, module, seen in (
            (triton_http.InferenceServerClient(urlsplit(server.url).netloc), triton_http, over_http),
            (triton_grpc.InferenceServerClient(server.grpc), triton_grpc, over_grpc),
        ):
            x = module.InferInput("x", [1, 3], "FP32")
            x.set_data_from_numpy(np.ones((1, 3), np.float32))
            for headers, version in (({}, ""), ({"x-canary": "yes"}, ""), ({}, "canary"), ({}, "1")):
                result = client.infer("scale", [x], model_version=version, headers=headers).get_response()
                seen.append(result["model_version"] if isinstance(result, dict) else result.model_version)
            client.close()

    assert [Counter("1"), Counter("2"), Counter("1")] == by_header
    assert ["1", "2", "2", "1"] == over_http == over_grpc


def test_unloading_one_version_over_both_wires(two):
    """A `version` parameter unloads that version only; an unknown parameter unloads nothing."""
    with serving(two, "--allow-model-control") as server, httpx.Client(base_url=server.url) as http:
        mistaken = http.post(f"{RULES}/unload", json={"parameters": {"versoin": "2"}})
        untouched = answering(http)
        http.post(f"{RULES}/unload", json={"parameters": {"version": "2"}}).raise_for_status()
        left = answering(http)
        http.post(f"{RULES}/versions/2/load").raise_for_status()
        back = answering(http)
        http.post(f"{RULES}/versions/2/unload").raise_for_status()
        unknown = http.post(f"{RULES}/versions/9/unload")
        client = triton_grpc.InferenceServerClient(server.grpc)
        client._client_stub.RepositoryModelLoad(
            triton_grpc.service_pb2.RepositoryModelLoadRequest(
                model_name="scale",
                parameters={"version": triton_grpc.service_pb2.ModelRepositoryParameter(int64_param=2)},
            )
        )
        over_grpc = client.is_model_ready("scale", "2")
        client.unload_model("scale")
        none = http.post(INFER, content=ROW)
        client.close()

    assert 400 == mistaken.status_code
    assert "unknown parameter `versoin`" in mistaken.json()["error"]
    assert [Counter("2"), Counter("1"), Counter("2")] == [untouched, left, back]
    assert (404, True, 503) == (unknown.status_code, over_grpc, none.status_code)


def test_a_changed_file_reaches_a_running_server(two):
    """Without any call, and without --watch: the file of rules is looked at every second."""
    with serving(two) as server, httpx.Client(base_url=server.url) as http:
        write_traffic(two / "scale", Traffic(stable=1))
        stop = time.monotonic() + 10
        while answering(http) != Counter("1") and time.monotonic() < stop:
            time.sleep(0.05)
        assert Counter("1") == answering(http)


def test_changes_are_refused_without_permission(two):
    """Reading is allowed to all; changing needs --allow-model-control."""
    with serving(two) as server, httpx.Client(base_url=server.url) as http:
        read = http.get("/v2/models/scale/versions")
        refused = [
            http.post(f"{RULES}/{verb}", json={"percent": 1}) for verb in ("canary", "promote", "rollback", "aliases")
        ]

    assert (200, "2", None) == (read.status_code, read.json()["answering"], read.json()["stable"])
    assert {403} == {answer.status_code for answer in refused}


@pytest.mark.parametrize(
    ("verb", "body", "status", "words"),
    [
        ("canary", {}, 400, "percent"),
        ("canary", {"percent": 101}, 400, "<= 100"),
        ("canary", {"percent": 10, "share": 1}, 400, "share"),
        ("canary", {"percent": 10, "header": "a b"}, 400, "is not a header"),
        ("canary", {"percent": 10, "version": "7"}, 404, "no version `7`"),
        ("promote", {}, 400, "no canary to promote"),
        ("promote", {"version": "../1"}, 404, "unknown version"),
        ("rollback", {"version": "9"}, 404, "no version `9`"),
        ("aliases", {"stable": "1"}, 400, "cannot be set"),
        ("aliases", {"blue": None}, 400, "no alias `blue`"),
        ("aliases", [], 400, "object"),
    ],
)
def test_changes_that_make_no_sense(controlled, verb, body, status, words):
    """Each is refused with the reason, and changes nothing."""
    answer = controlled.post(f"{RULES}/{verb}", json=body)

    assert status == answer.status_code
    assert words in answer.json()["error"]
    assert Counter("2") == answering(controlled)


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    """Serve two versions of a model with --allow-model-control."""
    root = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        write_bundle(root / "scale" / str(version), SCALE, version=version)
    with serving(root, "--allow-model-control") as server, httpx.Client(base_url=server.url) as http:
        yield http


def test_unknown_models(controlled):
    """Their versions are not compared."""
    assert 404 == controlled.get("/v2/models/nope/versions").status_code
    assert 404 == controlled.post("/v2/repository/models/nope/rollback").status_code
