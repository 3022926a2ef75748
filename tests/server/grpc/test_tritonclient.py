"""tritonclient over gRPC."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton

from demi.server.grpc.inference import (
    ModelInferRequest,
    ModelRepositoryParameter,
    RepositoryModelLoadRequest,
)
from tests.server.bundles import SCALE, write_bundle
from tests.server.grpc_client import X, failure, given, method, refused, slow_inputs
from tests.server.processes import serving


@pytest.fixture
def tritonclient(server) -> Iterator[triton.InferenceServerClient]:
    """Open a tritonclient of the shared server."""
    client = triton.InferenceServerClient(server.grpc)
    yield client
    client.close()


@pytest.fixture
def channel(server) -> Iterator[grpc.Channel]:
    """Open a plain channel to the shared server."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def test_a_request(tritonclient):
    """The answer contains model, version, id, precision and outputs."""
    result = tritonclient.infer("scale", [given("x", X, "FP32")], request_id="r1")
    response = result.get_response()

    assert [[2, 6, 12]] == result.as_numpy("y").tolist()
    assert ("scale", "2", "r1") == (response.model_name, response.model_version, response.id)
    assert "fp16-in-fp32" == response.parameters["precision"].string_param


def test_a_version(tritonclient):
    """A request may choose an older version."""
    assert "1" == tritonclient.infer("scale", [given("x", X, "FP32")], "1").get_response().model_version


def test_half_precision(tritonclient):
    """FP16 is sent and returned raw."""
    result = tritonclient.infer("half", [given("x", X.astype(np.float16), "FP16")])

    assert np.float16 == result.as_numpy("y").dtype
    assert [[2, 4, 6]] == result.as_numpy("y").tolist()


def test_bfloat16(tritonclient):
    """BF16 is accepted for a float input."""
    x = given("x", X.astype(ml_dtypes.bfloat16), "BF16")

    assert [[2, 6, 12]] == tritonclient.infer("scale", [x]).as_numpy("y").tolist()


def test_every_datatype(tritonclient):
    """All datatypes work, strings and booleans included."""
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


def test_classes(tritonclient):
    """The client can request classification."""
    outputs = [triton.InferRequestedOutput("y", class_count=1)]
    result = tritonclient.infer("scale", [given("x", X, "FP32")], outputs=outputs)

    assert [[b"12.000000:2"]] == result.as_numpy("y").tolist()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(tritonclient, algorithm):
    """Compressed calls work."""
    result = tritonclient.infer("slow", slow_inputs(0), compression_algorithm=algorithm)

    assert 256 * 256 == result.as_numpy("y").sum()


def test_a_stream(tritonclient):
    """A stream is answered in order; an error is one of its answers, and the stream continues."""
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    tritonclient.start_stream(callback=lambda result, error: answers.put((result, error)))
    for row in ([1, 0, 0], [0, 1, 0], None, [0, 0, 1]):
        x = X[:, :2] if row is None else np.array([row], np.float32)
        tritonclient.async_stream_infer("scale", [given("x", x, "FP32")], request_id=str(row))
    got = [answers.get(timeout=20) for _ in range(4)]
    tritonclient.stop_stream()

    assert ["[1, 0, 0]", "[0, 1, 0]", "[0, 0, 1]"] == [result.get_response().id for result, _ in got if result]
    assert [[0, 0, 4]] == got[3][0].as_numpy("y").tolist()
    assert "shape [1, 2], expected [batch, 3]" in got[2][1].message()
    assert got[0][0].get_response().parameters["triton_final_response"].bool_param


def test_errors_have_their_codes(tritonclient):
    """Client errors have their code and message."""
    x = given("x", X, "FP32")

    assert ("NOT_FOUND", "unknown model `nope`; POST /v2/repository/index lists the models") == failure(
        lambda: tritonclient.infer("nope", [x])
    )
    assert "NOT_FOUND" == failure(lambda: tritonclient.infer("scale", [x], "7"))[0]
    assert "NOT_FOUND" == failure(lambda: tritonclient.infer("scale", [x], "latest"))[0]
    assert "INVALID_ARGUMENT" == failure(lambda: tritonclient.infer("scale", [given("z", X, "FP32")]))[0]
    assert "UNAVAILABLE" == failure(lambda: tritonclient.infer("damaged", [x]))[0]
    assert "NOT_FOUND" == failure(lambda: tritonclient.get_model_metadata("nope"))[0]
    assert "UNAVAILABLE" == failure(lambda: tritonclient.get_model_config("damaged"))[0]
    assert "NOT_FOUND" == failure(lambda: tritonclient.get_inference_statistics("nope"))[0]


def test_a_failing_model(server, tritonclient):
    """The details of a failing run are only in the log, under the id in the message."""
    inputs = [given("x", np.zeros((1, 4), np.float32), "FP32"), given("shape", np.array([3, 3]), "INT64")]
    code, text = failure(lambda: tritonclient.infer("fragile", inputs))

    assert ("INTERNAL", True) == (code, text.startswith("the model failed on this request"))
    assert server.said(f"request_id={text.rsplit(' ', 1)[-1]}")


def test_the_parameter_timeout(tritonclient):
    """The parameter `timeout` is in microseconds, as over HTTP."""
    code, text = failure(lambda: tritonclient.infer("slow", slow_inputs(0.5), timeout=20_000))

    assert ("DEADLINE_EXCEEDED", "no answer within 0.02 s; raise the `timeout` parameter") == (code, text)


def test_a_message_beyond_the_limit(channel):
    """--max-body limits messages, also after decompression."""
    large = ModelInferRequest(model_name="scale", raw_input_contents=[bytes(2**20)])
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "ModelInfer")(large, compression=grpc.Compression.Gzip)

    assert "RESOURCE_EXHAUSTED" == refused(channel, large)[0]
    assert grpc.StatusCode.RESOURCE_EXHAUSTED == caught.value.code()


def test_a_name_as_long_as_a_message(channel):
    """The error about a very long name fits into the trailers."""
    code, text = refused(channel, ModelInferRequest(model_name="m" * 500_000))

    assert ("NOT_FOUND", True) == (code, len(text) <= 2000)


def test_trailing_metadata(channel):
    """The trailing metadata has precision and times, as HTTP's headers do."""
    request = ModelInferRequest(model_name="scale", raw_input_contents=[X.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    _, call = method(channel, "ModelInfer").with_call(request)
    metadata = {item.key: item.value for item in call.trailing_metadata()}

    assert "fp16-in-fp32" == metadata["demi-precision"]
    assert metadata["server-timing"].startswith("queue;dur=")


def test_other_methods(tritonclient):
    """Health, metadata, configuration and index work."""
    assert tritonclient.is_server_live()
    assert tritonclient.is_server_ready()
    assert tritonclient.is_model_ready("scale")
    assert not tritonclient.is_model_ready("damaged")
    assert not tritonclient.is_model_ready("nope")
    assert "demi" == tritonclient.get_server_metadata().name
    assert [-1, 3] == list(tritonclient.get_model_metadata("scale").inputs[0].shape)
    assert ["1", "2"] == list(tritonclient.get_model_metadata("scale").versions)
    assert 8 == tritonclient.get_model_config("scale", "1").config.max_batch_size
    assert {"scale", "damaged"} <= {row.name for row in tritonclient.get_model_repository_index().models}


def test_statistics(tritonclient):
    """Statistics equal HTTP's, for one version or all models."""
    before = tritonclient.get_inference_statistics("half", "1").model_stats[0]
    tritonclient.infer("half", [given("x", np.ones((2, 3), np.float16), "FP16")])
    after = tritonclient.get_inference_statistics("half", "1").model_stats[0]

    assert (2, 1) == (
        after.inference_count - before.inference_count,
        after.inference_stats.success.count - before.inference_stats.success.count,
    )
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert {"scale", "half"} <= {stats.name for stats in tritonclient.get_inference_statistics().model_stats}


def test_what_the_settings_do_not_allow(tritonclient):
    """Loading, unloading and shared memory are refused, naming the flag that allows them."""
    assert ("PERMISSION_DENIED", True) == denied(lambda: tritonclient.load_model("scale"), "--allow-model-control")
    assert ("PERMISSION_DENIED", True) == denied(lambda: tritonclient.unload_model("scale"), "--allow-model-control")
    assert ("PERMISSION_DENIED", True) == denied(
        lambda: tritonclient.register_system_shared_memory("r", "/r", 1), "--allow-shared-memory"
    )


def test_cuda_shared_memory(tritonclient):
    """CUDA shared memory is refused; its status is empty."""
    assert ("UNIMPLEMENTED", True) == denied(
        lambda: tritonclient.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 1), "CUDA"
    )
    assert not tritonclient.get_cuda_shared_memory_status().regions
    assert not tritonclient.get_system_shared_memory_status().regions
    tritonclient.unregister_cuda_shared_memory()
    tritonclient.unregister_system_shared_memory()


def test_a_model_inside_a_request_is_refused(tmp_path):
    """Model control loads bundles from disk only, never a model in the request."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    brought = RepositoryModelLoadRequest(
        model_name="scale", parameters={"file:1/model.onnx": ModelRepositoryParameter(bytes_param=b"...")}
    )
    with serving(tmp_path, "--allow-model-control") as server, grpc.insecure_channel(server.grpc) as channel:
        client = triton.InferenceServerClient(server.grpc)
        client.unload_model("scale")
        unloaded = client.is_model_ready("scale")
        client.load_model("scale")

        assert not unloaded
        assert client.is_model_ready("scale")
        assert "NOT_FOUND" == failure(lambda: client.load_model("nope"))[0]
        assert "INVALID_ARGUMENT" == refused(channel, brought, "RepositoryModelLoad")[0]
        client.close()


def denied(work, word: str) -> tuple[str, bool]:
    """Return the code of an error, and whether its message contains a word."""
    code, text = failure(work)
    return code, word in text
