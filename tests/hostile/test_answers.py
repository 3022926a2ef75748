"""Bad requests are the client's fault and told so; answers name no place on the server, and no model to strangers."""

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
    """An infer request; a NaN in it is read by the lenient parser, which lets more through."""
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
def test_a_bad_request_is_the_clients_fault(victim, members, lenient):
    """It is answered 400, by either parser, and leaves no trace in the log."""
    (answer,) = exchange(victim, request("POST", INFER, body=body(members, lenient=lenient)))

    assert (400, True) == (answer.status, b"error" in answer.body)
    assert "Traceback" not in victim.log


@pytest.mark.parametrize("size", [NINES, HUGE, b"9" * 5000, b"18446744073709551615", b"-1", b"1e3"])
def test_a_region_of_a_size_beyond_all_is_the_clients_fault(victim, size):
    """Registering one is answered 400."""
    asked = b'{"key":"/demi_none","byte_size":%s,"offset":%s}' % (size, size)

    (answer,) = exchange(victim, request("POST", "/v2/systemsharedmemory/region/r/register", body=asked))

    assert 400 == answer.status


def test_the_longest_time_is_waited_for(victim):
    """The largest whole number that is taken does no harm."""
    (answer,) = exchange(victim, request("POST", INFER, body=body(b',"parameters":{"timeout":9223372036854775807}')))

    assert 200 == answer.status


def test_whole_characters_in_escapes_are_text():
    """Two halves that belong together are one character, also beside a NaN."""
    data = [1, 2, 3]
    asked = message(data, shape=[1, 3])[:-1] + b',"x":NaN,"id":"\\ud83d\\ude00"}'

    assert "\U0001f600" == read_request(asked, None, signature_of("x:fp32[batch,3]", rows=8)).id


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory):
    """A server, without and with keys, of a folder with one good bundle and one that ONNX Runtime refuses."""
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
        ("GET", "/"),
    ],
)
def test_an_answer_holds_no_place_of_the_server(broken, method, path):
    """Why a model is not served is told, and where it lies is not; the log has both."""
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
    """Of a path its last name stays; the names of nodes stay as they are."""
    assert shown == redact_paths(text)


def test_a_models_own_folder_is_seen_whatever_its_name():
    """A folder with spaces, anywhere."""
    folder = Path("/elsewhere/my models/m/1")

    assert "cannot load model.onnx in 1" == redact_paths(f"cannot load {folder}/model.onnx in {folder}", folder)


def test_what_a_client_sent_is_told_back_to_it():
    """Its own words are no secret, also where they look like a path."""
    assert "no `/tmp/a`" == describe(RequestError("no `/tmp/a`")) == describe(NotFoundError("no `/tmp/a`"))
    assert "no `a`" == describe(SourceError("no `/tmp/a`"))


@pytest.fixture(scope="module")
def half_ready(tmp_path_factory: pytest.TempPathFactory):
    """A server with keys."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder / "scale" / "1", SCALE)
    keys = folder / "keys.txt"
    keys.write_text(KEY + "\n")
    with serving(folder, "--api-key-file", str(keys)) as process:
        yield process


@pytest.mark.parametrize("method", ["Check", "Watch"])
@pytest.mark.parametrize("name", ["scale", "nope"])
def test_health_over_grpc_names_no_model_to_strangers(half_ready, method, name):
    """Whether a model is there is told to those with a key; whether the server is well, to everyone."""
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
    """As over HTTP, in whatever order."""
    with grpc.insecure_channel(half_ready.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
        for keys in ([KEY, "wrong"], ["wrong", KEY]):
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", metadata=[("x-api-key", key) for key in keys], timeout=5)
            assert grpc.StatusCode.UNAUTHENTICATED == refused.value.code()


def test_heads_are_kept_by_several_threads_at_once():
    """As many as there may be and no more, and nobody trips over another."""
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
