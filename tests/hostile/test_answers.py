"""Invalid requests get 4xx errors; responses reveal no paths of the server, and no models to clients without a key."""

from __future__ import annotations

import threading
from pathlib import Path

import grpc
import numpy as np
import orjson
import pytest

from demi.bundles.bundle import open_bundle, write_manifest
from demi.bundles.manifest import MODEL
from demi.errors import SourceError
from demi.server.errors import NotFoundError, RequestError, describe
from demi.server.grpc.health import HealthCheckRequest, HealthCheckResponse
from demi.server.path_redaction import redact_paths
from demi.server.protocol.body import read_request
from demi.server.protocol.header_cache import MAX_HEADERS, HeaderCache
from demi.server.protocol.request import InferRequest, OutputRequest
from demi.server.protocol.schemas import InferInput
from tests.hostile.conftest import KEY
from tests.hostile.wire import exchange, request
from tests.server.bundles import SCALE, write_bundle
from tests.server.fakes import message, signature_of
from tests.server.processes import serving

INFER = "/v2/models/scale/infer"
NINES = b"9" * 4000
HUGE = b"9" * 4299
ENTRY = b'{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}'


def body(members: bytes = b"", inputs: bytes = ENTRY, *, lenient: bool = True) -> bytes:
    """Return an infer request; a NaN in it selects the lenient parser."""
    return b'{"inputs":[' + inputs + b"]" + (b',"x":NaN' if lenient else b"") + members + b"}"


PLACE = b'{"shared_memory_region":"r","shared_memory_byte_size":%s,"shared_memory_offset":%s}'
BAD = {
    "half a character": b',"id":"\\udfff"',
    "half a character in a name": b',"outputs":[{"name":"\\uDBFF"}]',
    "half a character in a parameter": b',"parameters":{"a\\ud800":1}',
    "a time beyond all": b',"parameters":{"timeout":' + NINES + b"}",
    "a time beyond 63 bits": b',"parameters":{"timeout":9223372036854775808}',
    "a time without end": b',"parameters":{"timeout":1e400}',
    "classes beyond all": b',"outputs":[{"name":"y","parameters":{"classification":' + NINES + b"}}]",
    "a place beyond all": b',"outputs":[{"name":"y","parameters":' + PLACE % (HUGE, HUGE) + b"}]",
    "a number of 5000 digits": b',"parameters":{"a":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("lenient", [True, False])
@pytest.mark.parametrize("members", BAD.values(), ids=BAD.keys())
def test_invalid_requests_are_client_errors(victim, members, lenient):
    """An invalid request is answered with 400 by either parser, and leaves no traceback in the log."""
    (answer,) = exchange(victim, request("POST", INFER, body=body(members, lenient=lenient)))

    assert (400, True) == (answer.status, b"error" in answer.body)
    assert "Traceback" not in victim.log


@pytest.mark.parametrize("size", [NINES, HUGE, b"9" * 5000, b"18446744073709551615", b"-1", b"1e3"])
def test_region_of_an_impossible_size(victim, size):
    """Registering a region of an impossible size is answered with 400."""
    asked = b'{"key":"/demi_none","byte_size":%s,"offset":%s}' % (size, size)

    (answer,) = exchange(victim, request("POST", "/v2/systemsharedmemory/region/r/register", body=asked))

    assert 400 == answer.status


def test_the_largest_timeout(victim):
    """The largest accepted timeout causes no error."""
    (answer,) = exchange(victim, request("POST", INFER, body=body(b',"parameters":{"timeout":9223372036854775807}')))

    assert 200 == answer.status


def test_escaped_surrogate_pairs():
    """An escaped surrogate pair is one character, also beside a NaN."""
    data = [1, 2, 3]
    asked = message(data, shape=[1, 3])[:-1] + b',"x":NaN,"id":"\\ud83d\\ude00"}'

    assert "\U0001f600" == read_request(asked, None, signature_of("x:fp32[batch,3]", rows=8)).id


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory):
    """A server, with and without keys, of a folder with one good bundle and one that ONNX Runtime refuses."""
    folder = tmp_path_factory.mktemp("my models")
    write_bundle(folder / "scale" / "1", SCALE)
    bad = write_bundle(folder / "bad" / "1", SCALE, name="bad")
    (bad / MODEL).write_bytes(b"no model")
    write_manifest(bad, open_bundle(bad, verify=False).manifest)
    with serving(folder) as process:
        yield process, folder


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/bad/ready"),
        ("GET", "/v2/models/bad"),
        ("POST", "/v2/models/bad/infer"),
        ("POST", "/v2/repository/index"),
        ("GET", "/console/models"),
        ("GET", "/console/models/bad/versions"),
        ("GET", "/console/models/bad/versions/1/plan"),
    ],
)
def test_responses_contain_no_paths(broken, method, path):
    """The reason that a model is not served is returned without its path; the log has both."""
    server, folder = broken

    (answer,) = exchange(server, request(method, path))

    assert str(folder).encode() not in answer.body
    assert str(folder) in server.log


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Load model from /tmp/a/b/model.onnx failed", "Load model from model.onnx failed"),
        ("[Errno 2] No such file: '/home/me/x.bin'", "[Errno 2] No such file: 'x.bin'"),
        ("in file:///srv/models/m/1/", "in file://"),
        ("node `/encoder/layer.0/MatMul` failed", "node `/encoder/layer.0/MatMul` failed"),
        ("1/tmp/2", "1/tmp/2"),
        ("there is none", "there is none"),
    ],
)
def test_paths_become_names(text, shown):
    """A path is reduced to its last name; names of nodes are kept."""
    assert shown == redact_paths(text)


def test_folder_of_a_model_with_any_name():
    """A model's own folder is recognized, whatever its name, for example with spaces."""
    folder = Path("/elsewhere/my models/m/1")

    assert "cannot load model.onnx in 1" == redact_paths(f"cannot load {folder}/model.onnx in {folder}", folder)


def test_text_of_the_client_is_returned():
    """Text that the client sent is returned unchanged, even if it looks like a path."""
    assert "no `/tmp/a`" == describe(RequestError("no `/tmp/a`")) == describe(NotFoundError("no `/tmp/a`"))
    assert "no `a`" == describe(SourceError("no `/tmp/a`"))


@pytest.fixture(scope="module")
def half_ready(tmp_path_factory: pytest.TempPathFactory):
    """A server with keys, one of whose models is not ready."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder / "scale" / "1", SCALE)
    keys = folder / "keys.txt"
    keys.write_text(KEY + "\n")
    with serving(folder, "--api-key-file", str(keys)) as process:
        yield process


@pytest.mark.parametrize("method", ["Check", "Watch"])
@pytest.mark.parametrize("name", ["scale", "nope"])
def test_health_over_grpc_without_a_key(half_ready, method, name):
    """The readiness of a model is only returned to clients with a key; the server's health to everyone."""
    with grpc.insecure_channel(half_ready.grpc) as channel:
        make = channel.unary_unary if method == "Check" else channel.unary_stream
        call = make(f"/grpc.health.v1.Health/{method}", None, HealthCheckResponse.FromString)

        def ask(service: str, metadata=()):
            answer = call(HealthCheckRequest(service=service).SerializeToString(), metadata=metadata, timeout=5)
            return answer if method == "Check" else next(iter(answer))

        assert HealthCheckResponse.SERVING == ask("").status
        with pytest.raises(grpc.RpcError) as refused:
            ask(name)
        assert grpc.StatusCode.UNAUTHENTICATED == refused.value.code()
        if name == "scale":
            assert HealthCheckResponse.SERVING == ask(name, [("x-api-key", KEY)]).status


def test_two_keys_over_grpc_are_refused(half_ready):
    """Two keys are refused over gRPC as over HTTP, in any order."""
    with grpc.insecure_channel(half_ready.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
        for keys in ([KEY, "wrong"], ["wrong", KEY]):
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", metadata=[("x-api-key", key) for key in keys], timeout=5)
            assert grpc.StatusCode.UNAUTHENTICATED == refused.value.code()


def test_header_cache_is_thread_safe():
    """The header cache is safe for several threads and does not exceed its size."""
    signature = signature_of("x:fp32[batch,3]", rows=8)
    given = [InferInput("x", [1, 3], "FP32", parameters={"binary_data_size": 12})]
    asked = InferRequest({"x": np.zeros((1, 3), np.float32)}, (OutputRequest("y", True),))
    cache, errors = HeaderCache(), []

    def keep(thread: int) -> None:
        try:
            for number in range(3000):
                cache.keep(orjson.dumps([thread, number]), given, asked, signature)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == errors
    assert MAX_HEADERS == len(cache._known)
