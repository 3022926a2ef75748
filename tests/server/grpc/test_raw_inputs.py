"""Texts, images and sound over gRPC."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.raw_inputs import png, wav
from tests.server.grpc_client import failure, given


@pytest.fixture(scope="module")
def client(raw_server) -> Iterator[triton.InferenceServerClient]:
    """Open Triton's client for the server."""
    with triton.InferenceServerClient(raw_server.grpc) as client:
        yield client


def words(*texts: str) -> np.ndarray:
    """Return texts as Triton's client takes them."""
    return np.array([text.encode() for text in texts], object)


def test_text_gets_its_answers(client):
    """Without a list of outputs, the answers."""
    found = client.infer("embed", [given("text", words("cat", "a cat sat"), "BYTES")])

    assert ["embedding"] == [each.name for each in found.get_response().outputs]
    assert np.allclose(np.float32([7, 9]) / np.hypot(7, 9), found.as_numpy("embedding")[0], atol=2e-3)


def test_pairs(client):
    """A model that compares two texts."""
    inputs = [given("text", words("a"), "BYTES"), given("text_pair", words("cat"), "BYTES")]

    assert [7.0] == client.infer("score", inputs).as_numpy("score").tolist()


@pytest.mark.parametrize(("model", "kind", "file"), [("color", "image", png()), ("loud", "audio", wav())])
def test_files(client, model, kind, file):
    """Bytes of files, which are not text."""
    found = client.infer(model, [given(kind, np.array([file], object), "BYTES")])

    assert found.as_numpy("label").tolist() in ([b"red"], [b"loud"])


def test_metadata_lists_raw_inputs(client):
    """As over HTTP."""
    found = client.get_model_metadata("embed")

    assert ["input_ids", "attention_mask", "text"] == [each.name for each in found.inputs]


def test_a_long_text_is_refused_and_cut_when_asked(client):
    """INVALID_ARGUMENT, or the parameter `truncate`."""
    long = [given("text", words("a " * 20), "BYTES")]

    code, message = failure(lambda: client.infer("embed", long))

    assert ("INVALID_ARGUMENT", True) == (code, "text 0 has 22 tokens" in message)
    assert (1, 2) == client.infer("embed", long, parameters={"truncate": True}).as_numpy("embedding").shape
