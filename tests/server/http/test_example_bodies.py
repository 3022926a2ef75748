"""`/docs`: inference first, paths of one version last, and an example request for each model that is answered as it is."""

from __future__ import annotations

import pytest

from demi.server.http.app import create_app
from demi.server.http.example_bodies import example_bodies
from demi.server.http.openapi import TAGS
from demi.server.models.repository import Repository, open_repository
from demi.server.settings import ServeSettings
from tests.server.bundles import GOLDEN_X, SCALE, SLOW, TYPES, write_bundle

SETTINGS = ServeSettings(runtime="onnxruntime", precision="half")


@pytest.fixture
def repository(tmp_path):
    """Open a model with golden inputs, one without, and one with large inputs."""
    write_bundle(tmp_path / "scale" / "1", SCALE, golden=GOLDEN_X)
    write_bundle(tmp_path / "types" / "1", TYPES)
    write_bundle(tmp_path / "slow" / "1", SLOW)
    return open_repository(tmp_path, SETTINGS)


def test_examples_are_golden_inputs_or_zeros(repository):
    """Large inputs have no example."""
    found = example_bodies(repository)

    assert {"scale", "types"} == set(found)
    assert [1.0] * 6 == found["scale"]["inputs"][0]["data"]
    assert [2, 3] == found["scale"]["inputs"][0]["shape"]
    assert [[False], [""]] == [found["types"]["inputs"][place]["data"] for place in (0, -1)]


def test_examples_are_answered(client):
    """Golden inputs of a running server's models are requests that it answers."""
    document = client.get("/openapi.json").json()
    examples = document["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"][
        "examples"
    ]

    for name in ("logarithm", "mixed"):
        answer = client.post(f"/v2/models/{name}/infer", json=examples[name]["value"])
        assert 200 == answer.status_code, answer.text


def test_sections_are_in_the_order_in_which_people_need_them():
    """Inference comes first, and paths of one version have a section of their own."""
    document = create_app(Repository([]), SETTINGS).openapi()
    used = {tag for path in document["paths"].values() for operation in path.values() for tag in operation["tags"]}

    assert list(TAGS) == [tag["name"] for tag in document["tags"]]
    assert "inference" == next(iter(TAGS))
    assert used <= set(TAGS), "every section has a place"
    assert ["one version"] == document["paths"]["/v2/models/{model}/versions/{version}/stats"]["get"]["tags"]
