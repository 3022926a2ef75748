"""Generated texts over gRPC, as clients of Triton's vLLM and TensorRT-LLM backends ask for them."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.generating_bundles import write_generating_repository
from tests.raw_inputs import wav
from tests.server.grpc_client import failure, given
from tests.server.processes import serving

FINAL = "triton_final_response"


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[triton.InferenceServerClient]:
    """Open Triton's client for a server with models that generate, two texts at a time each."""
    root = tmp_path_factory.mktemp("generating")
    flags = ("--max-generations", "2", "--no-trial", "--grpc-port", "0")
    with (
        serving(write_generating_repository(root), *flags) as server,
        triton.InferenceServerClient(server.grpc) as found,
    ):
        yield found


def texts(*rows: str | bytes, name: str = "text_input", shape: tuple[int, ...] | None = None) -> triton.InferInput:
    """Return texts as an input."""
    items = [row.encode() if isinstance(row, str) else row for row in rows]
    return given(name, np.array(items, object).reshape(shape or (len(rows),)), "BYTES")


def option(name: str, value: Any) -> triton.InferInput:
    """Return an option as an input of one element."""
    if isinstance(value, str):
        return texts(value, name=name)
    return given(name, np.array([value], bool if isinstance(value, bool) else np.int32),
                 "BOOL" if isinstance(value, bool) else "INT32")  # fmt: skip


def written(result: triton.InferResult) -> list[str]:
    """Return the texts of an answer."""
    return [text.decode() for text in result.as_numpy("text_output").ravel().tolist()]


class Stream:
    """A stream of requests; iterate over its answers, which are results or errors."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._client = client
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __enter__(self) -> Stream:
        self._client.start_stream(callback=lambda result, error: self._answers.put((result, error)))
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_stream(cancel_requests=True)

    def ask(self, model: str, *inputs: triton.InferInput, **options: Any) -> None:
        """Send a request."""
        self._client.async_stream_infer(model, list(inputs), **options)

    def next(self) -> tuple[Any, Any]:
        """Return the next answer and error."""
        return self._answers.get(timeout=20)

    def pieces(self) -> list[triton.InferResult]:
        """Return the answers up to the final one."""
        found = []
        while not found or not is_final(found[-1]):
            result, error = self.next()
            assert error is None
            found.append(result)
        return found


def is_final(result: triton.InferResult) -> bool:
    """Return whether an answer is the last one to its request."""
    return bool(result.get_response().parameters[FINAL].bool_param)


def test_one_answer_has_the_whole_text(client):
    """`text_input` and `max_tokens` in, `text_output` out, in the shape of the input."""
    whole = client.infer("count", [texts("one two")], request_id="a1")
    short = client.infer("count", [texts("one", shape=(1, 1)), option("max_tokens", 2)])

    assert (["three four five six seven eight"], "a1") == (written(whole), whole.get_response().id)
    assert (["two three"], [1, 1]) == (written(short), list(short.get_response().outputs[0].shape))


def test_rows_are_answered_together(client):
    """A text for each."""
    found = client.infer("count", [texts("one", "one two"), option("max_tokens", 1)])

    assert ["two", "three"] == written(found)


@pytest.mark.parametrize(
    ("inputs", "parameters"),
    [
        ([("sampling_parameters", json.dumps({"temperature": "0", "top_p": "0.95", "max_tokens": "2"}))], {}),
        ([("max_tokens", 2), ("top_k", 1), ("temperature", 1), ("end_id", 0)][:3], {}),
        ([], {"max_tokens": 2, "temperature": "0"}),
        ([("max_tokens", 2)], {"max_tokens": 7}),
        ([("stop_words", " four")], {}),
    ],
    ids=["vllm", "tensorrt-llm", "parameters", "tensor-first", "stop"],
)
def test_options(client, inputs, parameters):
    """As tensors, as JSON, or as parameters, numbers also as text."""
    found = client.infer("count", [texts("one"), *(option(*each) for each in inputs)], parameters=parameters)

    assert ["two three"] == written(found)


def test_more_about_a_text(client):
    """vLLM's additional outputs, asked for by flag or by name; a stream counts new tokens."""
    asked = [option(f"return_{name}", True) for name in ("finish_reason", "num_input_tokens", "num_output_tokens")]
    found = client.infer("count", [texts("one two"), option("max_tokens", 3), *asked])
    named = client.infer("count", [texts("seven")], outputs=[triton.InferRequestedOutput("finish_reason")])

    assert [b"length"] == found.as_numpy("finish_reason").tolist()
    assert (2, 3) == (found.as_numpy("num_input_tokens").item(), found.as_numpy("num_output_tokens").item())
    assert (None, [b"stop"]) == (named.as_numpy("text_output"), named.as_numpy("finish_reason").tolist())
    with Stream(client) as stream:
        stream.ask("count", texts("one two"), option("max_tokens", 3), option("stream", True), *asked)
        pieces = stream.pieces()
    assert 3 == sum(int(piece.as_numpy("num_output_tokens").item()) for piece in pieces)


def test_the_input_before_its_continuation(client):
    """Only if `exclude_input_in_output` is false."""
    found = client.infer("count", [texts("one "), option("max_tokens", 1), option("exclude_input_in_output", False)])

    assert ["one two"] == written(found)


def test_a_stream_has_an_answer_for_each_piece(client):
    """The last one is marked as final."""
    with Stream(client) as stream:
        stream.ask("count", texts("one two"), option("stream", True), request_id="b2")
        pieces = stream.pieces()

    assert "three four five six seven eight" == "".join(written(piece)[0] for piece in pieces)
    assert len(pieces) >= 6
    assert {"b2"} == {piece.get_response().id for piece in pieces}
    assert [False] * (len(pieces) - 1) + [True] == [is_final(piece) for piece in pieces]


def test_a_stream_without_pieces(client):
    """Without `stream`, one final answer."""
    with Stream(client) as stream:
        stream.ask("repeat", texts("five one"))
        (whole,) = stream.pieces()

    assert ["five one"] == written(whole)


def test_texts_of_a_stream_grow_side_by_side(client):
    """A short text does not wait for a long one before it, and what follows is answered meanwhile."""
    with Stream(client) as stream:
        stream.ask("endless", texts("one"), option("stream", True), option("max_tokens", 90_000), request_id="long")
        assert "long" == stream.next()[0].get_response().id
        stream.ask("endless", texts("one"), option("stream", True), option("max_tokens", 3), request_id="short")
        stream.ask("count", texts("seven"), request_id="whole")
        ends = set()
        while ends < {"short", "whole"}:
            result, _ = stream.next()
            if is_final(result):
                ends.add(result.get_response().id)
    assert {"short", "whole"} == ends


def test_an_error_in_a_stream_ends_one_text(client):
    """After its first pieces; the stream goes on."""
    with Stream(client) as stream:
        stream.ask("breaks", texts("one"), option("stream", True))
        found = [stream.next() for _ in range(4)]
        stream.ask("count", texts("seven"), option("stream", True), option("max_tokens", 3))
        after = stream.pieces()

    assert ["two", " three", " four"] == [written(result)[0] for result, _ in found[:3]]
    assert "NaN or infinite values in `logits`" in found[3][1].message()
    assert "two three four" == "".join(written(piece)[0] for piece in after)


def test_sounds(client):
    """Bytes of WAV and FLAC files."""
    noise = wav(np.full(8000, 0.5, np.float32), 16_000)

    assert ["three"] == written(client.infer("hear", [texts(noise, name="audio_input")]))
    assert ["three"] == written(client.infer("write", [texts(noise, name="audio_input")]))
    assert ["six"] == written(client.infer("write", [texts(noise, name="audio_input"), option("language", "de")]))
    code, message = failure(lambda: client.infer("hear", [texts(noise[:20], name="audio_input")]))
    assert ("INVALID_ARGUMENT", True) == (code, "sound 0 is not a sound" in message)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("count", [texts("one"), option("temperature", 1)], "`temperature` is 1, but texts are generated greedily"),
        ("count", [texts("one"), option("max_tokens", 0)], "0 tokens cannot be generated"),
        ("count", [texts("one"), option("image", "x")], "unknown input `image`"),
        ("count", [texts("one"), option("max_tokens", "x")], "`max_tokens` is BYTES"),
        ("count", [texts("one"), option("sampling_parameters", "{")], "not an object of JSON"),
        ("count", [texts("one"), option("sampling_parameters", '{"beams": 2}')], "`beams`, which is not known"),
        ("count", [texts("one"), option("sampling_parameters", '{"max_tokens": [1]}')], "`max_tokens` must be a number"),
        ("count", [texts("one"), option("bad_words", "six")], "`bad_words` are not supported"),
        ("count", [texts("one"), texts("one", "two", name="stop_words"), texts("one")], "sent twice"),
        ("count", [texts("one " * 30)], "30 tokens"),
        ("count", [texts(*["one"] * 3)], "--max-generations is 2"),
        ("hear", [texts("one")], "`audio_input` is missing"),
        ("nothing", [texts("one")], "unknown model"),
    ],
    ids=["temperature", "none", "unknown", "kind", "json", "json-name", "json-kind", "bad-words", "twice", "long",
         "many", "sound", "model"],
)  # fmt: skip
def test_wrong_requests(client, model, inputs, message):
    """The error names what is wrong, as a status and as an answer of a stream."""
    _, found = failure(lambda: client.infer(model, inputs))
    with Stream(client) as stream:
        stream.ask(model, *inputs)
        _, error = stream.next()

    assert message in found
    assert message in error.message()


def test_a_streamed_request_has_one_row(client):
    """Its pieces do not name rows."""
    with Stream(client) as stream:
        stream.ask("count", texts("one", "two"), option("stream", True))
        _, error = stream.next()

    assert "one row, not 2" in error.message()


def test_a_deadline_ends_a_text(client):
    """That of the request, or that of the call."""
    asked = [texts("one"), option("max_tokens", 90_000)]
    code, message = failure(lambda: client.infer("endless", asked, timeout=200_000))

    assert ("DEADLINE_EXCEEDED", True) == (code, "within 0.2 s" in message)


def test_generation_stops_when_its_client_leaves(client):
    """The model runs no further."""

    def runs() -> int:
        return int(client.get_inference_statistics("endless").model_stats[0].execution_count)

    with Stream(client) as stream:
        stream.ask("endless", texts("one"), option("stream", True), option("max_tokens", 90_000))
        assert stream.next()[1] is None

    stop = time.monotonic() + 10
    while (before := runs()) != (time.sleep(0.1) or runs()):
        assert time.monotonic() < stop, f"still running after {before} steps"


def test_metadata(client):
    """The tensors of a text beside the model's own, and that a request may have several answers."""
    found = client.get_model_metadata("count", as_json=True)
    config = client.get_model_config("count").config

    assert ["input_ids", "past", "text_input"] == [each["name"] for each in found["inputs"]]
    assert "text_output" == found["outputs"][-1]["name"]
    assert config.model_transaction_policy.decoupled


def test_tensors_are_taken_as_before(client):
    """A step of the decoder itself."""
    past = given("past", np.zeros((1, 1, 0, 1), np.float32), "FP32")
    found = client.infer("count", [given("input_ids", np.array([[1, 2]]), "INT64"), past])

    assert 3 == found.as_numpy("logits").argmax()
