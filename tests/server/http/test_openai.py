"""OpenAI's paths, asked with its own client."""

from __future__ import annotations

import httpx
import numpy as np
import openai
import orjson
import pytest


@pytest.fixture(scope="module")
def client(raw_server) -> openai.OpenAI:
    """Return OpenAI's client for the server."""
    return openai.OpenAI(base_url=f"{raw_server.url}/v1", api_key="none", max_retries=0)


def test_embeddings(client):
    """Vectors of length 1, in order, and the number of tokens."""
    found = client.embeddings.create(model="embed", input=["cat", "Paris"])

    assert ([0, 1], "embed") == ([each.index for each in found.data], found.model)
    assert np.allclose(np.float32([7, 9]) / np.hypot(7, 9), found.data[0].embedding, atol=2e-3)
    assert (6, 6) == (found.usage.prompt_tokens, found.usage.total_tokens)


def test_numbers_and_base64_are_the_same(client):
    """Its client asks for base64 unless it is told otherwise."""
    as_numbers = client.embeddings.create(model="embed", input="cat", encoding_format="float")

    in_base64 = client.embeddings.create(model="embed", input="cat")

    assert np.float32(as_numbers.data[0].embedding).tolist() == in_base64.data[0].embedding


@pytest.mark.parametrize("given", ["a cat", ["a cat"], [1, 4, 5, 2], [[1, 4, 5, 2]]])
def test_every_form_of_input(client, given):
    """A text or its token ids, one or several."""
    found = client.embeddings.create(model="embed", input=given)

    assert (1, 4) == (len(found.data), found.usage.total_tokens)
    assert client.embeddings.create(model="embed", input="a cat").data[0].embedding == found.data[0].embedding


def test_dimensions(client):
    """The first ones, scaled to length 1."""
    assert [1.0] == client.embeddings.create(model="embed", input="cat", dimensions=1).data[0].embedding


def test_models(client):
    """Those that take texts, images or sound."""
    assert {"embed", "score", "sentiment", "tag", "color", "loud"} == {each.id for each in client.models.list()}
    assert "embed" == client.models.retrieve("embed").id


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"model": "nothing"}, openai.NotFoundError, "unknown model `nothing`"),
        ({"model": "score"}, openai.BadRequestError, "for text-pair-scoring"),
        ({"input": "a " * 20}, openai.BadRequestError, "text 0 has 22 tokens"),
        ({"input": []}, openai.BadRequestError, "0 inputs"),
        ({"input": ["a", 3]}, openai.BadRequestError, "`input` must be"),
        ({"input": [99]}, openai.BadRequestError, "outside 0 to 8"),
        ({"dimensions": 3}, openai.BadRequestError, "the embedding has 2"),
    ],
)
def test_errors_have_openais_form(client, options, kind, text):
    """Its client raises its own error for each."""
    with pytest.raises(kind) as raised:
        client.embeddings.create(**{"model": "embed", "input": "a", **options})

    assert text in raised.value.body["message"]
    assert "invalid_request_error" == raised.value.body["type"]


def test_truncation_is_an_extension(client):
    """Long texts are cut when asked."""
    found = client.embeddings.create(model="embed", input="a " * 20, extra_body={"truncate": True})

    assert 8 == found.usage.total_tokens


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"input": "a"}', b'{"input": "\\ud800", "model": "embed"}'])
def test_bodies_that_are_not_the_protocol(raw_client, body):
    """400 in the same form."""
    response = raw_client.post("/v1/embeddings", content=body)

    assert (400, "invalid_request_error") == (response.status_code, response.json()["error"]["type"])


def test_a_body_beyond_the_limit(raw_client):
    """413, as for infer requests."""
    body = orjson.dumps({"input": "a" * 2_000_000, "model": "embed"})

    response: httpx.Response = raw_client.post("/v1/embeddings", content=body)

    assert 413 == response.status_code
