"""tritonclient over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.server.bundles import slow_turns


@pytest.fixture
def tritonclient(server) -> Iterator[triton.InferenceServerClient]:
    """Open a tritonclient of the shared server."""
    client = triton.InferenceServerClient(urlsplit(server.url).netloc)
    yield client
    client.close()


def given(name: str, values: np.ndarray, datatype: str, *, binary: bool = True) -> triton.InferInput:
    """Return an input with its data."""
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


X = np.array([[1, 2, 3]], np.float32)


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_json_and_binary_in_every_combination(tritonclient, binary_input, binary_output):
    """Inputs and outputs are JSON or binary; without named outputs the client requests binary."""
    outputs = None if binary_output is None else [triton.InferRequestedOutput("y", binary_data=binary_output)]
    result = tritonclient.infer("scale", [given("x", X, "FP32", binary=binary_input)], outputs=outputs, request_id="r1")

    assert [[2, 6, 12]] == result.as_numpy("y").tolist()
    assert "r1" == result.get_response()["id"]


def test_half_precision(tritonclient):
    """FP16 is sent and returned as bytes."""
    result = tritonclient.infer("half", [given("x", X.astype(np.float16), "FP16")])

    assert np.float16 == result.as_numpy("y").dtype
    assert [[2, 4, 6]] == result.as_numpy("y").tolist()


def test_full_precision_for_a_half_input(tritonclient):
    """FP32 is accepted for an FP16 input."""
    assert [[2, 4, 6]] == tritonclient.infer("half", [given("x", X, "FP32")]).as_numpy("y").tolist()


def test_every_datatype(tritonclient):
    """All datatypes work as binary, strings and booleans included."""
    sent = {
        "flag": (np.array([True, False]), "BOOL"),
        "small": (np.array([-1, 1], np.int8), "INT8"),
        "large": (np.array([2**53 + 1, -1]), "INT64"),
        "huge": (np.array([2**64 - 1, 0], np.uint64), "UINT64"),
        "half": (np.array([0.5, 1], np.float16), "FP16"),
        "wide": (np.array([0.1, 1e300]), "FP64"),
        "text": (np.array(["grün", ""], object), "BYTES"),
    }
    result = tritonclient.infer("types", [given(name, *value) for name, value in sent.items()])

    assert ["grün".encode(), b""] == result.as_numpy("text_out").tolist()
    for name, (values, _) in list(sent.items())[:-1]:
        assert values.tolist() == result.as_numpy(f"{name}_out").tolist()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways(tritonclient, algorithm):
    """The client compresses requests and decompresses answers."""
    result = tritonclient.infer(
        "slow",
        [given("turns", np.array(0), "INT64"), given("x", np.ones((256, 256), np.float32), "FP32")],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )

    assert 256 * 256 == result.as_numpy("y").sum()


def test_classes(tritonclient):
    """The client can request classification."""
    outputs = [triton.InferRequestedOutput("y", class_count=1)]

    assert [[b"12.000000:2"]] == tritonclient.infer("scale", [given("x", X, "FP32")], outputs=outputs).as_numpy(
        "y"
    ).tolist()


def test_errors_are_read(tritonclient):
    """The client reads the message of an error, whatever the status."""
    with pytest.raises(InferenceServerException, match="unknown model `nope`"):
        tritonclient.infer("nope", [given("x", X, "FP32")])
    with pytest.raises(InferenceServerException, match=r"shape \[1, 2\], expected"):
        tritonclient.infer("scale", [given("x", X[:, :2], "FP32")])
    slow = [given("turns", np.array(slow_turns(0.5)), "INT64"), given("x", np.ones((256, 256), np.float32), "FP32")]
    with pytest.raises(InferenceServerException, match="no answer within"):
        tritonclient.infer("slow", slow, timeout=20_000)


def test_other_methods(tritonclient):
    """Health, metadata, configuration and index work."""
    assert tritonclient.is_server_live()
    assert tritonclient.is_server_ready()
    assert tritonclient.is_model_ready("scale")
    assert not tritonclient.is_model_ready("damaged")
    assert "demi" == tritonclient.get_server_metadata()["name"]
    assert ["1", "2"] == tritonclient.get_model_metadata("scale")["versions"]
    assert 8 == tritonclient.get_model_config("scale", "1")["max_batch_size"]
    assert "scale" in {row["name"] for row in tritonclient.get_model_repository_index()}


def test_a_raw_request(client):
    """A raw request is answered in a form that tritonclient parses."""
    rows = np.float32([[1, 2, 3], [4, 5, 6]])
    headers = {"inference-header-content-length": "0", "content-type": "application/octet-stream"}
    answer = client.post("/v2/models/scale/infer", content=rows.tobytes(), headers=headers)
    length = int(answer.headers["inference-header-content-length"])
    result = triton.InferenceServerClient.parse_response_body(answer.content, header_length=length)

    assert 200 == answer.status_code
    assert [[2, 6, 12], [8, 15, 24]] == result.as_numpy("y").tolist()
    assert 400 == client.post("/v2/models/scale/infer", content=rows.tobytes()[:-1], headers=headers).status_code
