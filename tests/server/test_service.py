"""A service without sockets: what it opens, answers and closes, and the prefix that it may be mounted at."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import httpx
import pytest

from demi.errors import InputError
from demi.server.models.loading import load_bundle
from demi.server.service import Service, alone, open_service, prepare
from demi.server.settings import ServeSettings
from tests.server.bundles import SCALE, write_bundle
from tests.server.fakes import message

SETTINGS = ServeSettings(trial=False, threads=1)
ASKED = message([1.0, 2.0, 3.0], shape=[1, 3])
KEY = "a-key-of-the-test-suite"


def open_scale(folder: Path, settings: ServeSettings = SETTINGS, **options: Any) -> Service:
    """Open a service with one model."""
    return open_service(prepare(settings), write_bundle(folder / "bundle", SCALE), load_bundle, **options)


def ask(service: Service, method: str, path: str, root_path: str = "", **request: Any) -> httpx.Response:
    """Send one request to the application, without a socket, and return its answer."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(service.app, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, root_path + path, **request)

    return asyncio.run(send())


def test_a_service_answers_and_closes(tmp_path):
    """Models are loaded, a request is answered, and every run has ended afterwards."""
    service = open_scale(tmp_path)

    answer = ask(service, "POST", "/v2/models/scale/infer", content=ASKED)

    assert [2.0, 6.0, 12.0] == answer.json()["outputs"][0]["data"]
    assert service.close()


@pytest.mark.parametrize("path", ["/v2/models/scale", "/v2/models/scale/stats", "/v2/health/ready", "/metrics"])
def test_every_path_works_below_a_prefix(tmp_path, path):
    """A server in front may mount the application at a prefix, which is then part of each path."""
    service = open_scale(tmp_path)

    assert 200 == ask(service, "GET", path, root_path="/canary").status_code


def test_inference_works_below_a_prefix(tmp_path):
    """The prefix may even be the beginning of the path itself."""
    service = open_scale(tmp_path)

    for prefix in ("/canary", "/v2", "/v2/models"):
        answer = ask(service, "POST", "/v2/models/scale/infer", root_path=prefix, content=ASKED)
        assert 200 == answer.status_code, answer.text


def test_health_needs_no_key_below_a_prefix(tmp_path):
    """A prefix does not close the open paths, and opens no other."""
    (tmp_path / "keys").write_text(KEY)
    service = open_scale(tmp_path, dataclasses.replace(SETTINGS, api_key_file=tmp_path / "keys"))

    assert 200 == ask(service, "GET", "/v2/health/live", root_path="/canary").status_code
    assert 401 == ask(service, "GET", "/v2/models/scale", root_path="/canary").status_code


def test_clients_get_the_control_only_if_the_settings_allow_it(tmp_path):
    """The control itself is there in any case: the watched folder needs it."""
    closed = open_scale(tmp_path)
    offered = open_scale(tmp_path / "b", dataclasses.replace(SETTINGS, allow_model_control=True))

    assert closed.offered_control is None
    assert offered.control is offered.offered_control


def test_a_service_can_answer_for_several(tmp_path):
    """Questions about all models go to the overview that it was given."""
    asked = []

    class Everywhere:
        async def metrics(self) -> bytes:
            asked.append("metrics")
            return b"of all"

    service = open_scale(tmp_path, among=lambda overview, control: (Everywhere(), alone(overview, control)[1]))

    assert "of all" == ask(service, "GET", "/metrics").text
    assert ["metrics"] == asked


def test_grpc_methods_are_those_of_both_services(tmp_path):
    """Each method of inference and health has a handler."""
    services = open_scale(tmp_path).grpc_methods()

    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} == set(services)
    assert {"ModelInfer", "ModelStreamInfer"} < set(services["inference.GRPCInferenceService"])


def test_mistakes_in_the_settings_are_found_before_models_are_loaded(tmp_path):
    """A file of keys that is not there is an error, with its path."""
    with pytest.raises(InputError, match="the API keys cannot be read"):
        prepare(dataclasses.replace(SETTINGS, api_key_file=tmp_path / "missing"))
