"""Texts, images and sound over HTTP, in JSON, as binary data, and as the body."""

from __future__ import annotations

import base64
import subprocess
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import orjson
import pytest
import tritonclient.http as triton

from tests.raw_inputs import png, wav


def message(model_input: str, values: list, *others: dict, **members: object) -> bytes:
    """Return a JSON request with one BYTES input."""
    given = {"name": model_input, "datatype": "BYTES", "shape": [len(values)], "data": values}
    return orjson.dumps({"inputs": [given, *others], **members})


def outputs(response: httpx.Response) -> dict[str, list]:
    """Return the outputs of a JSON answer by name."""
    assert 200 == response.status_code, response.text
    return {each["name"]: each["data"] for each in response.json()["outputs"]}


def infer(client: httpx.Client, model: str, body: bytes, **headers: str) -> httpx.Response:
    """POST an infer request."""
    return client.post(f"/v2/models/{model}/infer", content=body, headers=headers)


def error(response: httpx.Response, status: int = 400) -> str:
    """Return the message of an error."""
    assert status == response.status_code, response.text
    return str(response.json()["error"])


def test_metadata_lists_raw_inputs_and_answers(raw_client):
    """Beside the tensors, and names them in the parameters."""
    found = raw_client.get("/v2/models/embed").json()

    assert ["input_ids", "attention_mask", "text"] == [each["name"] for each in found["inputs"]]
    assert ["vectors", "embedding"] == [each["name"] for each in found["outputs"]]
    assert ("text", "feature-extraction") == (found["parameters"]["raw_inputs"], found["parameters"]["task"])


def test_a_load_generator_sees_the_tensors_alone(raw_client):
    """The configuration, which they read, has no alternatives."""
    found = raw_client.get("/v2/models/embed/config").json()

    assert ["input_ids", "attention_mask"] == [each["name"] for each in found["input"]]


def test_text_gets_its_answers(raw_client):
    """Without a list of outputs, the answers and not the tensors."""
    found = outputs(infer(raw_client, "embed", message("text", ["cat", "a cat sat down a"])))

    assert ["embedding"] == list(found)
    assert np.allclose(np.float32([7, 9]) / np.hypot(7, 9), found["embedding"][:2], atol=2e-3)


def test_tensors_get_tensors(raw_client):
    """As before."""
    ids = {"datatype": "INT64", "shape": [1, 2], "data": [1, 5]}
    body = orjson.dumps({"inputs": [{"name": "input_ids", **ids}, {"name": "attention_mask", **ids}]})

    assert {"vectors": [1, 0, 6, 8]} == outputs(infer(raw_client, "embed", body))


def test_tensors_get_answers_when_asked(raw_client):
    """An answer is made of the outputs, wherever the inputs come from."""
    ids = {"datatype": "INT64", "shape": [1, 1], "data": [5]}
    inputs = [{"name": "input_ids", **ids}, {"name": "attention_mask", **ids, "data": [1]}]
    body = orjson.dumps({"inputs": inputs, "outputs": [{"name": "embedding"}]})

    assert np.allclose([0.6, 0.8], outputs(infer(raw_client, "embed", body))["embedding"], atol=1e-3)


def test_pairs(raw_client):
    """A model that compares two texts."""
    second = {"name": "text_pair", "datatype": "BYTES", "shape": [1], "data": ["cat"]}

    assert {"score": [7.0]} == outputs(infer(raw_client, "score", message("text", ["a"], second)))


def test_an_image_is_the_body(raw_server, tmp_path):
    """`curl --data-binary @cat.png`, without any header."""
    (tmp_path / "cat.png").write_bytes(png((0, 0, 255)))
    url = f"{raw_server.url}/v2/models/color/infer"

    found = subprocess.run(
        ["curl", "-s", "--data-binary", f"@{tmp_path / 'cat.png'}", url], capture_output=True, check=True
    ).stdout

    assert ["blue"] == orjson.loads(found)["outputs"][0]["data"]


@pytest.mark.parametrize(
    ("model", "kind", "file", "label"), [("color", "image", png(), "red"), ("loud", "audio", wav(), "loud")]
)
def test_files_in_every_form(raw_client, raw_server, model, kind, file, label):
    """As base64 in JSON, as binary data, and as the body."""
    in_json = outputs(infer(raw_client, model, message(kind, [base64.b64encode(file).decode()])))
    as_body = outputs(infer(raw_client, model, file))
    client = triton.InferenceServerClient(raw_server.url.removeprefix("http://"))
    tensor = triton.InferInput(kind, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([file], object))
    binary = client.infer(model, [tensor]).as_numpy("label")

    assert [label] == in_json["label"] == as_body["label"]
    assert [label.encode()] == binary.tolist()


@pytest.mark.parametrize(
    ("model", "body", "text"),
    [
        ("embed", message("text", ["a " * 10]), "text 0 has 12 tokens, but the model takes at most 8"),
        ("embed", message("text", []), "there is no text"),
        ("embed", message("text", [3]), "element 0 of its data is a whole number"),
        ("embed", message("text", ["a"] * 3000), "3000 rows, at most 2048"),
        (
            "embed",
            message("text", ["a"], parameters={"truncate": 1}),
            "`truncate` of the request must be true or false",
        ),
        ("score", message("text", ["a"]), "`text_pair` is missing"),
        ("color", message("image", ["%%%"]), "element 0 of input `image` is not base64"),
        ("color", message("image", ["AAAA"]), "image 0 is not an image"),
        ("color", b"\x89PNG\r\n\x1a\n", "image 0 "),
        ("loud", b"RIFF", "sound 0 is not a sound"),
        ("tag", orjson.dumps({"inputs": [], "outputs": [{"name": "entities"}]}), "is missing"),
    ],
)
def test_what_cannot_be_read_is_refused(raw_client, model, body, text):
    """400, and the error names the row."""
    assert text in error(infer(raw_client, model, body))


def test_raw_and_tensor_inputs_do_not_mix(raw_client):
    """One is made of the other."""
    ids = {"name": "input_ids", "datatype": "INT64", "shape": [1, 1], "data": [5]}

    assert "send either raw inputs or tensors" in error(infer(raw_client, "embed", message("text", ["a"], ids)))


def test_long_texts_are_cut_when_asked(raw_client):
    """And not otherwise."""
    cut = infer(raw_client, "embed", message("text", ["a " * 100], parameters={"truncate": True}))
    short = infer(raw_client, "embed", message("text", ["a " * 6]))

    assert outputs(cut) == outputs(short)


def test_texts_of_one_request_come_back_in_order(raw_client):
    """Although they run in groups of similar length."""
    texts = ["a cat sat down a Paris", "cat", "Paris", "a cat sat", "down"] * 9
    alone = {text: outputs(infer(raw_client, "embed", message("text", [text])))["embedding"] for text in set(texts)}

    found = np.reshape(outputs(infer(raw_client, "embed", message("text", texts)))["embedding"], (-1, 2))

    assert np.allclose([alone[text] for text in texts], found, atol=1e-6)


def test_many_clients_get_their_own_answers(raw_client):
    """Requests share runs."""
    texts = ["cat", "Paris", "a cat sat down a", "sat"] * 16
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda text: outputs(infer(raw_client, "embed", message("text", [text]))), texts))

    assert all(found[index] == found[index % 4] for index in range(len(texts)))


def test_an_output_of_the_model_beside_the_answer(raw_client):
    """All rows have one length then."""
    body = message("text", ["cat", "a cat"], outputs=[{"name": "vectors"}, {"name": "embedding"}])

    assert [2 * 4 * 2, 4] == [len(values) for values in outputs(infer(raw_client, "embed", body)).values()]


def test_entities(raw_client):
    """Their places are in the text as it was sent."""
    (found,) = outputs(infer(raw_client, "tag", message("text", ["a cat sat Paris"])))["entities"]

    (entity,) = orjson.loads(found)
    assert ("place", 10, 15) == (entity["entity"], entity["start"], entity["end"])
