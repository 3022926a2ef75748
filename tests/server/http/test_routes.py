"""Routes other than inference: health, metadata, configuration, index and documentation."""

from __future__ import annotations

import re

import orjson
import pytest

from demi.server.models.cpu_choice import COMPUTED_IN_FP32


def error_of(response, status: int) -> str:
    """Return the message of an error answer."""
    assert status == response.status_code, response.text
    assert ["error"] == list(response.json())
    return str(response.json()["error"])


@pytest.mark.parametrize("prefix", ["/v2", ""])
def test_health(client, prefix):
    """The server is live and ready although one bundle is damaged."""
    assert {"live": True} == client.get(prefix + "/health/live").json()
    assert {"ready": True} == client.get(prefix + "/health/ready").json()


def test_server_metadata(client):
    """The server metadata has name, version and the supported extensions."""
    body = client.get("/v2").json()

    assert "demi" == body["name"]
    assert "binary_tensor_data" in body["extensions"]
    assert "statistics" in body["extensions"]


def test_model_metadata(client):
    """Model metadata has tensors with -1 for the batch axis, all versions, precision and device."""
    assert {
        "name": "scale",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        "parameters": {
            "precision": "fp16-in-fp32",
            "runtime": "onnxruntime",
            "device": "cpu",
            "batching": "up to 8 rows a run",
            "accuracy": "unknown (0 samples)",
            "note": COMPUTED_IN_FP32,
        },
    } == client.get("/v2/models/scale").json()
    assert client.get("/v2/models/scale").json() == client.get("/v2/models/scale/versions/1").json()


def test_model_configuration(client):
    """The batch axis is in max_batch_size and not in dims; without one, max_batch_size is 0."""
    batched = client.get("/v2/models/half/config").json()
    plain = client.get("/v2/models/types/versions/1/config").json()

    assert (8, [{"name": "x", "data_type": "TYPE_FP16", "dims": [3]}]) == (batched["max_batch_size"], batched["input"])
    assert {"decoupled": False} == batched["model_transaction_policy"]
    assert 0 == plain["max_batch_size"]
    assert {"name": "text", "data_type": "TYPE_STRING", "dims": [-1]} == plain["input"][-1]


def test_model_readiness(client):
    """A model is ready, not ready with the reason, or unknown."""
    assert {"name": "scale", "ready": True} == client.get("/v2/models/scale/ready").json()
    assert 200 == client.get("/v2/models/scale/versions/1/ready").status_code
    assert "digest differs" in error_of(client.get("/v2/models/damaged/ready"), 503)
    assert "digest differs" in error_of(client.get("/v2/models/damaged"), 503)
    assert "digest differs" in error_of(client.get("/v2/models/damaged/config"), 503)
    assert "unknown model `nope`" in error_of(client.get("/v2/models/nope/ready"), 404)
    assert "unknown version `7`" in error_of(client.get("/v2/models/scale/versions/7/ready"), 404)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready":false}'])
def test_the_index(client, body):
    """The index lists all model versions with states and reasons."""
    rows = {(row["name"], row["version"]): row for row in client.post("/v2/repository/index", content=body).json()}

    assert "READY" == rows["scale", "1"]["state"]
    assert "UNAVAILABLE" == rows["damaged", "1"]["state"]
    assert "digest differs" in rows["damaged", "1"]["reason"]


def test_the_index_of_what_is_ready(client):
    """With `ready` the index lists ready models only."""
    rows = client.post("/v2/repository/index", content=b'{"ready":true}').json()

    assert {"READY"} == {row["state"] for row in rows}


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready":"yes"}', b"\xff"])
def test_invalid_index_requests(client, body):
    """An invalid body is 400."""
    error_of(client.post("/v2/repository/index", content=body), 400)


@pytest.mark.parametrize(
    "path",
    ["/v2/", "/v2/models/scale/", "/v2/health/ready/", "/v1", "/favicon.ico", "/v2/models", "/v2/models/scale/x"],
)
def test_unknown_paths(client, path):
    """Unknown paths are 404 without a redirect, trailing slashes included."""
    assert f"`{path}`" in error_of(client.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v2", "GET"),
        ("POST", "/v2/health/live", "GET"),
        ("DELETE", "/v2/models/scale", "GET"),
        ("GET", "/v2/repository/index", "POST"),
        ("POST", "/", "GET"),
    ],
)
def test_wrong_methods(client, method, path, allow):
    """Wrong methods are 405 with Allow."""
    response = client.request(method, path)

    error_of(response, 405)
    assert allow in response.headers["allow"]


def test_a_large_index_body(client):
    """The index body has a size limit too."""
    error_of(client.post("/v2/repository/index", content=b" " * (2**20 + 1)), 413)


def test_the_documentation_has_every_path(client):
    """The documentation lists all paths, inference and its errors included."""
    document = client.get("/openapi.json").json()
    infer = document["paths"]["/v2/models/{model}/infer"]["post"]

    assert 200 == client.get("/docs").status_code
    assert {"200", "400", "404", "413", "415", "500", "503", "504"} == set(infer["responses"])
    assert {
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{model}",
        "/v2/models/{model}/ready",
        "/v2/models/{model}/config",
        "/v2/models/{model}/versions/{version}/stats",
        "/v2/models/stats",
        "/v2/models/{model}/versions/{version}/infer",
        "/v2/repository/index",
    } <= set(document["paths"])


def test_the_documentation_needs_no_network(client):
    """The page loads its assets from the server itself."""
    page = client.get("/docs").text
    start = client.get("/docs/start.js").text
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)|url: ["']([^"']+)""", page + start)
    paths = [first or second for first, second in loaded]

    assert "//" not in page.replace("// ", "")
    assert {"docs/assets/swagger-ui-bundle.js", "docs/assets/swagger-ui.css", "openapi.json"} <= set(paths)
    assert {200} == {client.get(path).status_code for path in paths}


def test_openapi_references_resolve(client):
    """All references in the document resolve."""
    text = client.get("/openapi.json").text
    schemas = orjson.loads(text)["components"]["schemas"]

    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(schemas)
