"""Classification of failed runs: a value out of the model's range is an error of its own client only."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton

from demi.errors import DeviceLostError, InferenceError
from demi.runtime.onnxruntime.session import open_session
from demi.server.errors import RequestError
from demi.server.scheduling.run_errors import classify_run_error
from demi.tensors import Feeds
from tests.server.bundles import write_bundle
from tests.server.grpc_client import failure, given
from tests.server.processes import serving

HEADER = '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>\n'
TABLE = "<float[3,2] t = {1, 2, 3, 4, 5, 6}>"

EMBED = f"""embed (int64[batch, 2] ids) => (float[batch, 2, 2] y) {TABLE}
{{ y = Gather(t, ids) }}"""

FAULTS = {
    "Gather": (
        f"m (int64[n] ids) => (float[n,2] y) {TABLE} {{ [look] y = Gather(t, ids) }}",
        {"ids": np.int64([0, 7])},
        "input `ids` holds 7: index 7 is out of range in `look`, which accepts -3 to 2",
    ),
    "Gather, below": (
        f"m (int32[n] ids) => (float[n,2] y) {TABLE} {{ [look] y = Gather(t, ids) }}",
        {"ids": np.int32([0, -4])},
        "input `ids` holds -4: index -4 is out of range in `look`, which accepts -3 to 2",
    ),
    "Gather of what was computed": (
        f"m (int64[n] ids, int64[n] others) => (float[n,2] y) {TABLE} {{ sum = Add(ids, others) [look] y = Gather(t, sum) }}",
        {"ids": np.int64([4]), "others": np.int64([5])},
        "index 9 is out of range in `look`, which accepts -3 to 2; send shorter inputs, or values within the model",
    ),
    "a text longer than there are positions": (
        f"""m (float[n] x) => (float[n,2] y) {TABLE} <int64 axis = {{0}}>
        {{ one = Equal(x, x) count = Cast<to=7>(one) at = CumSum<exclusive=1>(count, axis) [look] y = Gather(t, at) }}""",
        {"x": np.float32([1, 2, 3, 4])},
        "index 3 is out of range in `look`, which accepts -3 to 2; send shorter inputs",
    ),
    "GatherND": (
        f"m (int64[n,1] ids) => (float[n,2] y) {TABLE} {{ [look] y = GatherND(t, ids) }}",
        {"ids": np.int64([[7]])},
        "input `ids` holds 7: index 7 is out of range in `look`",
    ),
    "GatherElements": (
        f"m (int64[1,2] ids) => (float[1,2] y) {TABLE} {{ [look] y = GatherElements(t, ids) }}",
        {"ids": np.int64([[0, 7]])},
        "an index is out of range in `look`; send shorter inputs",
    ),
    "ScatterElements": (
        f"m (int64[1,2] ids, float[1,2] u) => (float[3,2] y) {TABLE} {{ [put] y = ScatterElements(t, ids, u) }}",
        {"ids": np.int64([[0, 7]]), "u": np.ones((1, 2), np.float32)},
        "input `ids` holds 7: index 7 is out of range in `put`, which accepts -3 to 2",
    ),
    "ScatterND": (
        f"m (int64[1,1] ids, float[1,2] u) => (float[3,2] y) {TABLE} {{ [put] y = ScatterND(t, ids, u) }}",
        {"ids": np.int64([[7]]), "u": np.ones((1, 2), np.float32)},
        "input `ids` holds 7: index 7 is out of range in `put`",
    ),
    "ONNX Runtime's embedding": (
        f"""m (int32[1,2] ids) => (float[1,2,2] y, int32[1] z) {TABLE} <float[2] g = {{1, 2}}>
        {{ [look] y, z = com.microsoft.EmbedLayerNormalization(ids, , t, t, , g, g) }}""",
        {"ids": np.int32([[0, 7]])},
        "an index is out of range in `look`",
    ),
    "ReverseSequence": (
        "m (float[4,2] x, int64[2] lengths) => (float[4,2] y) { [turn] y = ReverseSequence(x, lengths) }",
        {"x": np.ones((4, 2), np.float32), "lengths": np.int64([9, 1])},
        "input `lengths` holds 9: length 9 is out of range in `turn`, which accepts 0 to 4",
    ),
}


def error_of(text: str, feeds: Feeds) -> Exception:
    """Return the error of running a model given as text."""
    model = onnx.parser.parse_model(HEADER + text.replace("> <", ", "))
    with pytest.raises(InferenceError) as caught:
        open_session(model.SerializeToString()).run(feeds)
    return caught.value


@pytest.mark.parametrize(("text", "feeds", "words"), FAULTS.values(), ids=FAULTS)
def test_values_out_of_range_are_client_errors(text, feeds, words):
    """The message names the input that holds the value, if one does, and the accepted range."""
    found = classify_run_error(error_of(text, feeds), feeds)

    assert isinstance(found, RequestError)
    assert found.message.startswith(words)


def test_inputs_that_are_too_small_are_client_errors():
    """A sound of one sample, for a kernel of four."""
    text = "m (float[1,1,n] x) => (float[1,1,m] y) <float[1,1,4] w = {1, 1, 1, 1}> { [slide] y = Conv(x, w) }"
    feeds = {"x": np.ones((1, 1, 1), np.float32)}
    found = classify_run_error(error_of(text, feeds), feeds)

    assert isinstance(found, RequestError)
    assert "the inputs are too small for `slide`" in found.message
    assert "a longer sound" in found.hint


def test_other_errors_stay_server_errors():
    """A run that fails for another reason, such as a lost device, is not a client error."""
    text = "m (float[n] x, int64[2] shape) => (float[a,b] y) { y = Reshape(x, shape) }"
    failed = error_of(text, {"x": np.ones(4, np.float32), "shape": np.int64([3, 3])})
    lost = DeviceLostError("CUDA failure 710")

    assert failed is classify_run_error(failed, {})
    assert lost is classify_run_error(lost, {})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Server of a model with a table of three entries and a queue delay."""
    models = tmp_path_factory.mktemp("models")
    write_bundle(models / "embed/1", EMBED)
    with serving(models, "--max-queue-delay-us", "50000") as process:
        yield process


def test_only_the_bad_request_of_a_batch_gets_400(server):
    """Of requests that share a run, the one with an id beyond the table gets 400, and all others are answered."""

    async def ask(client: httpx.AsyncClient, ids: list[int]) -> httpx.Response:
        inputs = [{"name": "ids", "shape": [1, 2], "datatype": "INT64", "data": ids}]
        return await client.post("/v2/models/embed/infer", json={"inputs": inputs})

    async def at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
            return await asyncio.gather(*(ask(client, [at % 3, 70 if at == 3 else 0]) for at in range(8)))

    answers = asyncio.run(at_once())

    assert [200, 200, 200, 400, 200, 200, 200, 200] == [answer.status_code for answer in answers]
    assert (
        "input `ids` holds 70: index 70 is out of range in `Gather`, which accepts -3 to 2"
        == answers[3].json()["error"]
    )
    assert [3, 4, 1, 2] == answers[1].json()["outputs"][0]["data"]
    assert "a batch of" in server.log


def test_over_grpc(server):
    """gRPC answers INVALID_ARGUMENT with the same message."""
    with triton.InferenceServerClient(server.grpc) as client:
        code, text = failure(lambda: client.infer("embed", [given("ids", np.int64([[0, 3]]), "INT64")]))

    assert "INVALID_ARGUMENT" == code
    assert text.startswith("input `ids` holds 3: index 3 is out of range")


def test_a_large_request(server):
    """One bad row of a request that is split over several runs fails that request, once."""
    ids = np.zeros((20, 2), int)
    ids[17, 1] = 5
    inputs = [{"name": "ids", "shape": [20, 2], "datatype": "INT64", "data": ids.ravel().tolist()}]
    answer = httpx.post(server.url + "/v2/models/embed/infer", json={"inputs": inputs})

    assert 400 == answer.status_code
    assert "holds 5" in answer.json()["error"]
