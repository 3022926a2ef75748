"""Generated texts over HTTP: Triton's generate extension, OpenAI's completions, their limits and their ends."""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest

from tests.generating_bundles import ENDLESS, write_decoder, write_generating_repository
from tests.raw_inputs import wav
from tests.server.processes import ServerProcess, serving


@pytest.fixture(scope="module")
def generating_server(tmp_path_factory) -> Iterator[ServerProcess]:
    """Start a server with models that generate, two texts at a time each."""
    root = tmp_path_factory.mktemp("generating")
    flags = ("--max-generations", "2", "--no-grpc", "--no-trial")
    with serving(write_generating_repository(root), *flags) as process:
        yield process


@pytest.fixture
def client(generating_server) -> Iterator[httpx.Client]:
    """Return a plain client."""
    with httpx.Client(base_url=generating_server.url, timeout=30) as found:
        yield found


@pytest.fixture
def completions(generating_server):
    """Return OpenAI's completions."""
    return openai.OpenAI(base_url=f"{generating_server.url}/v1", api_key="none", max_retries=0).completions


def generate(client: httpx.Client, model: str, **body: object) -> httpx.Response:
    """Ask for a text as a whole."""
    return client.post(f"/v2/models/{model}/generate", json=body)


def streamed(client: httpx.Client, model: str, **body: object) -> list[dict[str, str]]:
    """Return the events of a streamed text."""
    with client.stream("POST", f"/v2/models/{model}/generate_stream", json=body) as answer:
        assert (200, "text/event-stream; charset=utf-8") == (answer.status_code, answer.headers["content-type"])
        return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]


def test_generate_has_tritons_shapes(client):
    """The text goes in as `text_input` and comes out as `text_output`."""
    answer = generate(client, "count", text_input="one two", id="a1").json()

    text = "three four five six seven eight"
    assert {"id": "a1", "model_name": "count", "model_version": "1", "text_output": text} == answer


@pytest.mark.parametrize("body", [{"max_tokens": 2}, {"parameters": {"max_tokens": 2}}], ids=["body", "parameters"])
def test_the_number_of_tokens(client, body):
    """In `parameters`, or in the body as some backends have it."""
    assert "two three" == generate(client, "count", text_input="one", **body).json()["text_output"]


def test_an_encoder_decoder_generates(client):
    """Its encoder runs once."""
    assert "five one" == generate(client, "repeat", text_input="five one").json()["text_output"]


def test_sounds_are_the_body_or_base64(client):
    """The features of a sound go to the encoder."""
    silence, noise = (wav(np.full(8000, level, np.float32), 16_000) for level in (0.0, 0.5))

    answers = [client.post("/v2/models/hear/generate", content=sound) for sound in (noise, silence)]
    assert ["three", "five"] == [answer.json()["text_output"] for answer in answers]
    encoded = base64.b64encode(noise).decode()
    assert "three" == generate(client, "hear", audio_input=encoded).json()["text_output"]
    assert ["three"] == [event["text_output"] for event in streamed(client, "hear", audio_input=encoded)][:1]
    assert "six" == generate(client, "write", audio_input=encoded, language="de").json()["text_output"]
    for broken in ({"audio_input": "no base64"}, {"text_input": "one"}):
        assert 400 == generate(client, "hear", **broken).status_code
    assert 400 == client.post("/v2/models/hear/generate", content=noise[:20]).status_code


def test_a_version_can_be_named(client):
    """As for infer requests."""
    answer = client.post("/v2/models/count/versions/1/generate", json={"text_input": "one", "max_tokens": 1})
    assert "two" == answer.json()["text_output"]
    assert 404 == client.post("/v2/models/count/versions/9/generate", json={"text_input": "one"}).status_code


def test_a_stream_is_the_whole_in_pieces(client):
    """One event for each new piece of text."""
    events = streamed(client, "count", text_input="one two")

    assert 6 == len(events) - (not events[-1]["text_output"])
    assert "three four five six seven eight" == "".join(event["text_output"] for event in events)


def test_a_stop_text(client):
    """It ends the text and is not part of it."""
    body = {"text_input": "one", "parameters": {"stop": ["five"]}}
    assert "two three four " == generate(client, "count", **body).json()["text_output"]
    assert "two three four " == "".join(event["text_output"] for event in streamed(client, "count", **body))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "`text_input` is missing"),
        ({"text_input": 3}, "does not follow the protocol"),
        ({"text_input": "one", "max_tokens": 0}, "0 tokens"),
        ({"text_input": "one", "parameters": {"stop": [""]}}, "`stop` takes"),
        ({"text_input": "one " * 30}, "30 tokens"),
    ],
    ids=["nothing", "number", "no-tokens", "empty-stop", "too-long"],
)
def test_wrong_requests_are_refused(client, body, message):
    """With 400 and the reason, before anything is generated; a stream as well."""
    for path in ("generate", "generate_stream"):
        answer = client.post(f"/v2/models/count/{path}", json=body)
        assert 400 == answer.status_code
        assert message in answer.json()["error"]


def test_logits_that_are_not_finite_are_an_error(client):
    """As a status before the first token, and as an event after it."""
    assert 500 == generate(client, "breaks", text_input="one").status_code
    events = streamed(client, "breaks", text_input="one")

    assert ["two", " three", " four"] == [event["text_output"] for event in events[:-1]]
    assert "NaN or infinite values in `logits`" in events[-1]["error"]


def test_a_deadline_ends_a_text(client):
    """504, or an event with the error once the stream has begun."""
    body = {"text_input": "one", "parameters": {"timeout": 300_000, "max_tokens": 90_000}}
    assert 504 == generate(client, "endless", **body).status_code
    assert "within 0.3 s" in streamed(client, "endless", **body)[-1]["error"]


def test_texts_at_a_time_are_bounded(client):
    """The third is refused with 503 and can be sent again; places are free once their clients have left."""
    body = {"text_input": "one", "max_tokens": 90_000}
    with (
        client.stream("POST", "/v2/models/endless/generate_stream", json=body) as first,
        client.stream("POST", "/v2/models/endless/generate_stream", json=body) as second,
    ):
        chunks = [stream.iter_raw() for stream in (first, second)]
        assert all(next(each) for each in chunks)
        refused = generate(client, "endless", text_input="one", max_tokens=1)
        assert (503, "1") == (refused.status_code, refused.headers["retry-after"])
        assert "--max-generations 2" in refused.json()["error"]
    assert _comes(lambda: generate(client, "endless", text_input="one", max_tokens=1).status_code == 200)


def test_generation_stops_when_its_client_leaves(client, generating_server):
    """Streamed or not: the model runs no further."""

    def runs() -> int:
        return int(client.get("/v2/models/endless/stats").json()["model_stats"][0]["execution_count"])

    body = {"text_input": "one", "max_tokens": 90_000}
    with client.stream("POST", "/v2/models/endless/generate_stream", json=body) as stream:
        assert next(stream.iter_raw())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{generating_server.url}/v2/models/endless/generate", json=body, timeout=0.2)

    def is_quiet() -> bool:
        before = runs()
        time.sleep(0.1)
        return runs() == before

    assert _comes(is_quiet)


def _comes(condition) -> bool:
    """Return whether a condition comes true within some seconds."""
    stop = time.monotonic() + 10
    while not condition():
        if time.monotonic() > stop:
            return False
        time.sleep(0.05)
    return True


def test_a_model_of_another_kind_does_not_generate(raw_client):
    """And a model that generates is not there: the answer is 400 or 404, with the way to ask."""
    answer = raw_client.post("/v2/models/embed/generate", json={"text_input": "one"})

    assert 400 == answer.status_code
    assert "does not generate" in answer.json()["error"]


def test_openai_completions(completions):
    """A completion for each prompt, and the account of tokens."""
    found = completions.create(model="count", prompt=["one two", "six"], max_tokens=3)

    assert [("three four five", "length", 0), ("two three four", "length", 1)] == [
        (each.text, each.finish_reason, each.index) for each in found.choices
    ]
    assert ("text_completion", "count") == (found.object, found.model)
    assert (3, 6, 9) == (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens)


def test_openai_stream_is_the_whole(completions):
    """Chunks, the reason for the end, and the account if it is asked for."""
    options = {"model": "count", "prompt": "one two", "max_tokens": 16}
    chunks = list(completions.create(**options, stream=True, stream_options={"include_usage": True}))

    whole = completions.create(**options)
    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert "stop" == whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason
    assert whole.usage == chunks[-1].usage


def test_openai_takes_token_ids_and_many_prompts_in_a_stream(completions):
    """Pieces name their prompt."""
    chunks = list(completions.create(model="count", prompt=[[1, 2], [4]], max_tokens=2, stream=True))

    texts = ["".join(c.choices[0].text for c in chunks if c.choices[0].index == place) for place in (0, 1)]
    assert ["three four", "two three"] == texts


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"model": "nothing"}, openai.NotFoundError, "unknown model"),
        ({"temperature": 0.7}, openai.BadRequestError, "greedily"),
        ({"model": "hear"}, openai.BadRequestError, "generates from sound, not from text; ask it with /v1/audio"),
        ({"n": 2}, openai.BadRequestError, "`n` is 2"),
        ({"prompt": ["one", "two", "three"]}, openai.BadRequestError, "--max-generations"),
        ({"prompt": []}, openai.BadRequestError, "there is no text|`prompt`"),
    ],
    ids=["model", "temperature", "speech", "n", "prompts", "no-prompts"],
)
def test_openai_errors(completions, options, kind, message):
    """In its form, for what cannot be done."""
    with pytest.raises(kind, match=message):
        completions.create(**{"model": "count", "prompt": "one", **options})


def test_openai_errors_in_a_stream(completions):
    """The client raises them."""
    stream = completions.create(model="breaks", prompt="one", stream=True)

    with pytest.raises(openai.APIError, match="NaN or infinite values in `logits`"):
        list(stream)


def test_models_are_listed(generating_server):
    """For OpenAI's clients."""
    client = openai.OpenAI(base_url=f"{generating_server.url}/v1", api_key="none")
    assert {"count", "endless", "breaks", "repeat", "hear", "write"} == {each.id for each in client.models.list()}


def test_caches_count_towards_the_memory_of_requests(tmp_path):
    """At their longest: a text that could not be finished is refused before it begins."""
    write_decoder(tmp_path / "endless" / "1", description=ENDLESS, name="endless")
    flags = ("--max-in-flight", "100KiB", "--no-grpc", "--no-trial")
    with serving(tmp_path, *flags) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        refused = generate(client, "endless", text_input="one", max_tokens=90_000)
        assert (503, True) == (refused.status_code, "--max-in-flight" in refused.json()["error"])
        assert 200 == generate(client, "endless", text_input="one", max_tokens=100).status_code


def test_a_server_that_drains_finishes_its_texts(tmp_path):
    """A stream that has begun is sent to its end; the process then ends."""
    write_decoder(tmp_path / "endless" / "1", description=ENDLESS, name="endless")
    with serving(tmp_path, "--no-grpc", "--no-trial") as server:
        body = {"text_input": "one", "max_tokens": 600}
        url = f"{server.url}/v2/models/endless/generate_stream"
        with httpx.stream("POST", url, json=body, timeout=30) as stream:
            lines = stream.iter_lines()
            assert next(lines)
            server.process.send_signal(signal.SIGTERM)
            events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        assert 0 == server.wait()

    assert "error" not in events[-1]
    assert len(events) > 500
