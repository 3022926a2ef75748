"""Inference over HTTP against a real server: valid requests, and each error status."""

from __future__ import annotations

import gzip
import re
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
import orjson
import pytest

from demi.tensors import DType
from tests.server.bundles import slow_turns
from tests.server.fakes import binary_message, message

SCALE = "/v2/models/scale/infer"
ROW = message([1, 2, 3], shape=[1, 3])


def infer(client: httpx.Client, body: bytes, path: str = SCALE, **headers: str) -> httpx.Response:
    """POST a body with exactly these headers (underscores for dashes)."""
    return client.post(path, content=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def refused(response: httpx.Response, status: int) -> str:
    """Return the message of an error answer, which must be JSON with only an `error`."""
    assert status == response.status_code, response.text
    assert "application/json" == response.headers["content-type"]
    body = response.json()
    assert ["error"] == list(body)
    return str(body["error"])


def slow_message(seconds: float, **parameters: object) -> bytes:
    """Return a request that keeps the `slow` model busy for about that many seconds."""
    inputs = [
        {"name": "turns", "shape": [], "datatype": "INT64", "data": [slow_turns(seconds)]},
        {"name": "x", "shape": [256, 256], "datatype": "FP32", "data": [0] * 65536},
    ]
    return orjson.dumps({"inputs": inputs, "parameters": parameters})


def test_json(client):
    """A minimal JSON request gets a complete answer."""
    response = infer(client, message([1, 2, 3], shape=[1, 3], id="a"))

    assert {
        "model_name": "scale",
        "model_version": "2",
        "parameters": {"precision": "fp16-in-fp32"},
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 6.0, 12.0]}],
        "id": "a",
    } == response.json()
    assert "inference-header-content-length" not in response.headers


def test_answer_headers(client):
    """The headers contain the precision, and queue and compute time as Server-Timing."""
    headers = infer(client, ROW).headers

    assert "fp16-in-fp32" == headers["demi-precision"]
    assert re.fullmatch(r"queue;dur=\d+\.\d{3}, compute;dur=\d+\.\d{3}", headers["server-timing"])


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "application/x-www-form-urlencoded", "application/octet-stream", "text/x"],
)
def test_the_content_type_does_not_matter(client, content_type):
    """Any content type is accepted, and none."""
    headers = {"content_type": content_type} if content_type else {}

    assert 200 == infer(client, ROW, **headers).status_code


def test_versions(client):
    """The version in the path answers."""
    assert "1" == infer(client, ROW, "/v2/models/scale/versions/1/infer").json()["model_version"]


def test_binary(client):
    """Binary input and output, with lengths in the headers."""
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    body, length = binary_message(("x", DType.FP32, [2, 3], x.tobytes()), parameters={"binary_data_output": True})
    response = infer(client, body, inference_header_content_length=length)

    head = int(response.headers["inference-header-content-length"])
    assert "application/octet-stream" == response.headers["content-type"]
    assert 24 == orjson.loads(response.content[:head])["outputs"][0]["parameters"]["binary_data_size"]
    assert (x * [2, 3, 4]).astype(np.float32).tobytes() == response.content[head:]


def test_raw(client):
    """With a header length of 0 the body is the tensor."""
    response = infer(client, np.ones(3, np.float32).tobytes(), inference_header_content_length="0")
    head = int(response.headers["inference-header-content-length"])

    assert np.array([2, 3, 4], np.float32).tobytes() == response.content[head:]


def test_half_precision_as_json_and_as_bytes(client):
    """FP16 tensors are sent as JSON numbers or as two bytes each."""
    as_json = infer(client, message([0.5, 1, 1e4], shape=[1, 3], datatype="FP16"), "/v2/models/half/infer").json()
    x = np.array([[0.5, 1, 1e4]], np.float16)
    body, length = binary_message(("x", DType.FP16, [1, 3], x.tobytes()), parameters={"binary_data_output": True})
    response = infer(client, body, "/v2/models/half/infer", inference_header_content_length=length)

    assert [1.0, 2.0, 2e4] == as_json["outputs"][0]["data"]
    assert (x + x).tobytes() == response.content[int(response.headers["inference-header-content-length"]) :]


def test_every_datatype_through_a_model(client):
    """Each datatype passes through the runtime unchanged."""
    sent = {
        "flag": ("BOOL", [True, False]),
        "small": ("INT8", [-128, 127]),
        "large": ("INT64", [2**53 + 1, -(2**63)]),
        "huge": ("UINT64", [2**64 - 1, 0]),
        "half": ("FP16", [0.5, -65504]),
        "wide": ("FP64", [0.1, 1e300]),
        "text": ("BYTES", ["grün", ""]),
    }
    inputs = [{"name": name, "shape": [2], "datatype": kind, "data": data} for name, (kind, data) in sent.items()]
    outputs = infer(client, orjson.dumps({"inputs": inputs}), "/v2/models/types/infer").json()["outputs"]

    assert {f"{name}_out": data for name, (_, data) in sent.items()} == {out["name"]: out["data"] for out in outputs}


def test_large_body_is_parsed_in_another_thread(client):
    """A body that is parsed in another thread is answered too."""
    response = infer(client, slow_message(0), "/v2/models/slow/infer")

    assert [256, 256] == response.json()["outputs"][0]["shape"]


def test_nan_in_and_null_out(client):
    """NaN is accepted in a request and written as null in an answer."""
    body = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,NaN,-1]}]}'
    response = infer(client, body, "/v2/models/logarithm/infer")

    assert [0.0, None, None] == response.json()["outputs"][0]["data"]
    assert b"NaN" not in response.content


def test_classification(client):
    """Classification returns the largest elements as strings."""
    outputs = [{"name": "y", "parameters": {"classification": 2}}]
    output = infer(client, message([1, 2, 3], shape=[1, 3], outputs=outputs)).json()["outputs"][0]

    assert ["12.000000:2", "6.000000:1"] == output["data"]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_requests(client, encoding, pack):
    """The header length refers to the decompressed body."""
    body, length = binary_message(("x", DType.FP32, [1, 3], np.ones(3, np.float32).tobytes()))
    response = infer(client, pack(body), content_encoding=encoding, inference_header_content_length=length)

    assert [2.0, 3.0, 4.0] == response.json()["outputs"][0]["data"]


@pytest.mark.parametrize(("encoding", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_compressed_answers(server, encoding, unpack):
    """Large answers are compressed on request; the header length refers to the uncompressed body."""
    request = httpx.Request(
        "POST", server.url + "/v2/models/slow/infer", content=slow_message(0, binary_data_output=True)
    )
    request.headers["accept-encoding"] = encoding
    with httpx.Client() as client:
        response = client.send(request, stream=True)
        body = unpack(b"".join(response.iter_raw()))

    assert encoding == response.headers["content-encoding"]
    assert 256 * 256 * 4 == len(body) - int(response.headers["inference-header-content-length"])


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/nope/infer",
        "/v2/models/scale/versions/9/infer",
        "/v2/models/scale/versions/x/infer",
        "/v2/models/scale/versions//infer",
        "/v2/models//infer",
        "/v2/models/..%2Fscale/infer",
        "/v2/models/scale%2Fversions%2F1/infer",
        "/v2/models/sc%2561le/infer",
        "/v2/models/%FF/infer",
        "/v2/models/scale/infer/",
        "/v2/models/scale/infer2",
        "/v3/models/scale/infer",
    ],
)
def test_unknown_models_versions_and_paths(client, path):
    """Unknown names are 404; they are decoded once and never used as paths."""
    refused(infer(client, ROW, path), 404)


def test_names_are_percent_decoded_once(client):
    """A percent-encoded letter equals that letter."""
    assert 200 == infer(client, ROW, "/v2/models/sc%61le/infer").status_code


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_wrong_method(client, method):
    """Methods other than POST are 405, with Allow."""
    response = client.request(method, SCALE)

    refused(response, 405)
    assert "POST" == response.headers["allow"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        message([1, 2], shape=[1, 3]),
        message([1, 2, 3, 4], shape=[1, 3]),
        message([1, None, 3], shape=[1, 3]),
        message([1, "2", 3], shape=[1, 3]),
        message([1, 2, 3], shape=[1, 3], datatype="INT32"),
        message([1, 2, 3], shape=[1, 3], datatype="FP8"),
        message([1, 2, 3], shape=[-1, 3]),
        message([1, 2, 3], shape=[3]),
        message([1, 2, 3, 4], shape=[1, 4]),
        message([1, 2, 3], shape=[1, 3], name="w"),
        message([1, 2, 3], shape=[1, 3], outputs=[{"name": "w"}]),
        message([1, 2, 3], shape=[1, 3], parameters={"a": {}}),
        message([1, 2, 3], shape=[1, 3], parameters={"a": []}),
    ],
    ids=lambda body: body.decode()[:60] or "empty",
)
def test_invalid_requests(client, body):
    """Each kind of invalid request is 400 with a message."""
    refused(infer(client, body), 400)


@pytest.mark.parametrize(
    ("datatype", "data", "name"),
    [
        ("INT8", [1.5, 2], "small"),
        ("INT8", [128, 2], "small"),
        ("UINT64", [-1, 2], "huge"),
        ("INT64", [2**63, 2], "large"),
    ],
)
def test_invalid_integers(client, datatype, data, name):
    """Fractions and out-of-range integers are 400, naming the tensor."""
    response = infer(client, message(data, shape=[2], datatype=datatype, name=name), "/v2/models/types/infer")

    assert f"input `{name}`" in refused(response, 400)


@pytest.mark.parametrize("length", ["-1", "99999", "x", ""])
def test_invalid_header_lengths(client, length):
    """An invalid header length is 400; an empty header equals none."""
    response = infer(client, ROW, inference_header_content_length=length)

    if length:
        assert "Inference-Header-Content-Length" in refused(response, 400)
    else:
        assert 200 == response.status_code


@pytest.mark.parametrize("extra", [b"", b"\0\0\0\0\0", b"\0" * 24])
def test_missing_and_extra_bytes(client, extra):
    """Fewer or more bytes than declared are refused."""
    body, length = binary_message(("x", DType.FP32, [1, 3], extra), sizes=[12])

    refused(infer(client, body, inference_header_content_length=length), 400)


def test_invalid_compression(client):
    """An unsupported encoding is 415, a damaged body 400, a zip bomb 413."""
    refused(infer(client, ROW, content_encoding="br"), 415)
    refused(infer(client, ROW, content_encoding="gzip"), 400)
    refused(infer(client, gzip.compress(ROW)[:-3], content_encoding="gzip"), 400)
    refused(infer(client, gzip.compress(bytes(2**21)), content_encoding="gzip"), 413)


def test_a_body_over_the_limit(client):
    """A body over the limit is 413, by its declared length or by counting chunks."""

    def chunks():
        for _ in range(20):
            yield b" " * 2**16

    refused(infer(client, b" " * (2**20 + 1)), 413)
    refused(client.post(SCALE, content=chunks()), 413)


def test_a_chunked_body(client):
    """A chunked body is read to its end."""
    assert 200 == client.post(SCALE, content=iter([ROW[:10], ROW[10:]])).status_code


def test_model_that_failed_to_load(client):
    """A bundle that failed to load is 503 with the reason and without Retry-After."""
    response = infer(client, ROW, "/v2/models/damaged/infer")

    assert "digest differs" in refused(response, 503)
    assert "retry-after" not in response.headers


def test_failing_run(client, server):
    """A failing run is 500 with a request id that the log has too, and the next request is answered."""
    inputs = [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]},
        {"name": "shape", "shape": [2], "datatype": "INT64", "data": [3, 3]},
    ]
    text = refused(infer(client, orjson.dumps({"inputs": inputs}), "/v2/models/fragile/infer"), 500)
    request_id = text.rsplit(" ", 1)[-1]
    inputs[1]["data"] = [2, 2]

    assert "Reshape" not in text
    assert server.said(f"request_id={request_id}")
    assert server.said("Reshape")
    assert 200 == infer(client, orjson.dumps({"inputs": inputs}), "/v2/models/fragile/infer").status_code


def test_a_deadline(client):
    """A request whose deadline passes is 504, before the model has finished."""
    text = refused(infer(client, slow_message(0.5, timeout=30_000), "/v2/models/slow/infer"), 504)

    assert "no answer within 0.03 s" in text


def test_others_are_served_while_a_model_is_busy(client):
    """A slow model delays neither other models nor health checks."""
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(infer, client, slow_message(0.5), "/v2/models/slow/infer")
        while not slow.done():
            assert 200 == client.get("/v2/health/live").status_code
            fast = infer(client, ROW)
            if not slow.done():
                break
        else:
            pytest.fail("the slow request was over before another was answered")
        assert 200 == fast.status_code
        assert 200 == slow.result().status_code


def test_client_that_disconnects(client, server):
    """A client that disconnects in the middle of its request does no harm."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"POST {SCALE} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())

    assert 200 == infer(client, ROW).status_code
