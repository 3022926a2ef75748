"""The paths of text-embeddings-inference, asked with Hugging Face's client."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from huggingface_hub import InferenceClient

from tests.raw_inputs import png, wav


def hub(server, path: str) -> InferenceClient:
    """Return Hugging Face's client for one path of the server."""
    return InferenceClient(model=f"{server.url}{path}")


def post(client, path: str, **body: object):
    """POST a JSON body."""
    return client.post(path, content=orjson.dumps(body))


def test_feature_extraction(raw_server):
    """`/embed` answers one vector a text."""
    found = hub(raw_server, "/embed").feature_extraction("cat")

    assert np.allclose(np.float32([[7, 9]]) / np.hypot(7, 9), found, atol=2e-3)


def test_vectors_as_they_are(raw_server):
    """`normalize` is theirs to choose; without it, as in text-embeddings-inference, the length is 1."""
    found = hub(raw_server, "/embed").feature_extraction("cat", normalize=False)

    assert np.allclose([[7 / 3, 3]], found, atol=1e-3)


def test_truncation(raw_server, raw_client):
    """Only when asked; else 413 and `Validation`, as there."""
    assert (1, 2) == hub(raw_server, "/embed").feature_extraction("a " * 20, truncate=True).shape
    refused = post(raw_client, "/embed", inputs="a " * 20)

    assert (413, "Validation") == (refused.status_code, refused.json()["error_type"])
    assert "text 0 has 22 tokens" in refused.json()["error"]


def test_text_classification(raw_client):
    """`/predict` answers labels, the best first; a single text has a flat list, as there."""
    found = post(raw_client, "/predict", inputs="Paris Paris", model="sentiment").json()

    assert ["good", "bad"] == [each["label"] for each in found]
    assert np.isclose(1, sum(each["score"] for each in found))


def test_several_texts(raw_client):
    """A list of lists of one text has a list for each."""
    found = post(raw_client, "/predict", inputs=[["a"], ["Paris Paris"]], model="sentiment", raw_scores=True).json()

    assert [("bad", 6.0), ("good", 6.0)] == [(each[0]["label"], each[0]["score"]) for each in found]


def test_rerank(raw_client):
    """The best first, with their places in the request."""
    found = post(raw_client, "/rerank", query="a", texts=["a", "Paris", "cat"], return_text=True)

    assert [(1, 10.0, "Paris"), (2, 7.0, "cat"), (0, 6.0, "a")] == [
        (each["index"], each["score"], each["text"]) for each in found.json()
    ]
    assert "15" == found.headers["x-compute-tokens"]


def test_image_classification(raw_server):
    """The file is the body."""
    found = hub(raw_server, "/predict?model=color").image_classification(png((0, 255, 0)))

    assert "green" == found[0].label


def test_audio_classification(raw_server):
    """The file is the body."""
    assert "loud" == hub(raw_server, "/predict?model=loud").audio_classification(wav())[0].label


def test_the_only_model_of_a_kind_answers(raw_client):
    """A name is needed only where several fit; it may be in the body or in the query."""
    assert 200 == post(raw_client, "/embed", inputs="a").status_code
    refused = post(raw_client, "/predict", inputs="a")
    assert "3 models answer `/predict`: color, loud, sentiment" in refused.json()["error"]
    assert 200 == post(raw_client, "/predict", inputs="a", model="sentiment").status_code


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/embed", {}, 422, "missing required field `inputs`"),
        ("/embed", {"inputs": [1.5]}, 422, "`inputs` must be"),
        ("/embed", {"inputs": []}, 422, "0 inputs"),
        ("/embed", {"inputs": "a", "truncation_direction": "Left"}, 422, "truncation_direction"),
        ("/embed", {"inputs": "a", "prompt_name": "query"}, 422, "no prompt `query`"),
        ("/embed", {"inputs": "a", "model": "none"}, 404, "unknown model `none`"),
        ("/embed", {"inputs": "a", "model": "score"}, 422, "for text-pair-scoring"),
        ("/rerank", {"query": "a", "texts": []}, 422, "0 inputs"),
        ("/predict", {"inputs": "a", "model": "color"}, 422, "takes image"),
    ],
)
def test_errors_have_their_form(raw_client, path, body, status, text):
    """`error` and `error_type`."""
    found = raw_client.post(path, content=orjson.dumps(body))

    assert status == found.status_code
    assert ["error", "error_type"] == list(found.json())
    assert text in found.json()["error"]


def test_a_server_without_such_a_model(client):
    """404 names the path."""
    found = post(client, "/embed", inputs="a")

    assert (404, "Validation") == (found.status_code, found.json()["error_type"])
