"""A bundle's processing as a whole: raw rows in, answers out, in the rows' order."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import demi
from demi.bundles.bundle import open_bundle
from demi.errors import BundleError, DigestError, InputError
from demi.processing.description import ClassAnswer, EmbeddingAnswer, Processing
from demi.processing.prepared import RawRows
from demi.processing.processor import Processor, open_processor
from tests.raw_inputs import COLORS, EMBEDDING, IMAGE, MODELS, TEXT, png, tokenizer_json, wav, write_raw_bundle


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every tiny model as a bundle."""
    folder = tmp_path_factory.mktemp("raw")
    for name in MODELS:
        write_raw_bundle(folder / name / "1", name)
    return folder


def test_text_becomes_an_embedding(root):
    """The mean of [CLS] (1, 0), cat (6, 8) and [SEP] (0, 1), scaled to length 1."""
    with demi.load(root / "embed") as model:
        found = model(text="cat")

    assert ["embedding"] == list(found)
    assert np.allclose(np.float32([[7, 9]]) / np.hypot(7, 9), found["embedding"])


def test_padding_does_not_reach_an_embedding(root):
    """A text has the same vector alone and beside a longer one."""
    with demi.load(root / "embed") as model:
        alone, together = model(text=["cat"])["embedding"], model(text=["a cat sat down a", "cat"])["embedding"]

    assert np.array_equal(alone[0], together[1])


def test_tensors_are_taken_as_before(root):
    """The same bundle, and outputs by name."""
    ids = np.int64([[1, 5, 2]])
    with demi.load(root / "embed") as model:
        found = model(input_ids=ids, attention_mask=np.ones_like(ids))

    assert {"vectors": (1, 3, 2)} == {name: array.shape for name, array in found.items()}


def test_an_output_of_the_model_can_be_asked_for(root):
    """Beside the answer; its rows are padded to the longest."""
    with demi.load(root / "embed") as model:
        found = model.run({"text": ["a cat", "sat"]}, ["vectors", "embedding"])

    assert {"vectors": (2, 4, 2), "embedding": (2, 2)} == {name: array.shape for name, array in found.items()}


def test_pairs_images_and_sounds(root, tmp_path):
    """Each kind of answer; files by path or as bytes."""
    (tmp_path / "sky.png").write_bytes(png((0, 0, 255)))
    with demi.load(root / "score") as model:
        assert [5 + 2] == model(text="a", text_pair="cat")["score"].tolist()
    with demi.load(root / "color") as model:
        assert ["blue", "red"] == model(image=[tmp_path / "sky.png", png()])["label"].tolist()
    with demi.load(root / "loud") as model:
        assert ["loud", "quiet"] == model(audio=[wav(), wav(np.zeros(99, np.float32))])["label"].tolist()
    with demi.load(root / "tag") as model:
        assert '"start":2,"end":7' in model(text="a Paris")["entities"][0]


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("embed", {"text": []}, "there is no text"),
        ("embed", {"text": [3]}, "`text` holds a int, not a text"),
        ("embed", {"text": "a", "input_ids": [[1]]}, "`input_ids` is a tensor"),
        ("score", {"text": "a"}, "`text_pair` is missing"),
        ("score", {"text": ["a", "a"], "text_pair": "a"}, "2 text and 1 text_pair"),
        ("embed", {"image": "cat.png"}, "unknown input `image`"),
        ("embed", {"text": ["a", "b \udc80"]}, "text 1 is not Unicode: character 2 is half of a surrogate pair"),
        ("color", {"image": "no/such.png"}, "cannot be read"),
    ],
)
def test_wrong_raw_inputs_are_refused(root, name, inputs, message):
    """The error names the input."""
    with demi.load(root / name) as model, pytest.raises(InputError, match=message):
        model(**inputs)


def test_sounds_of_different_lengths_do_not_share_a_run_without_a_mask(root):
    """Padding would change the answer."""
    processor = open_processor(open_bundle(root / "loud"))

    runs = processor.prepare(RawRows((wav(), wav(np.zeros(99, np.float32)), wav())))

    assert [(0, 2), (1,)] == [run.indices for run in runs]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 9))
@settings(deadline=None)
def test_rows_are_grouped_and_come_back_in_order(lengths, most_rows):
    """Runs hold rows of similar length, at most so many; together they are all rows, once."""
    processor = Processor(EMBEDDING, *_specs("embed"), tokenizer_json().decode())
    rows = RawRows(tuple(" ".join(["cat"] * length) for length in lengths))

    runs = processor.prepare(rows, most_rows)

    assert list(range(len(lengths))) == sorted(index for run in runs for index in run.indices)
    assert all(len(run.indices) <= most_rows for run in runs)
    assert all(run.feeds["input_ids"].size <= 1.5 * sum(run.counts) for run in runs)
    counts = [{"n": np.array(run.counts)} for run in runs]
    assert [length + 2 for length in lengths] == processor.join(runs, counts)["n"].tolist()


def _specs(name: str):
    from tests.server.bundles import session_of

    session = session_of(MODELS[name][0])
    return session.inputs, session.outputs


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (COLORS, "it fills pixel_values, but the model's inputs are input_ids, attention_mask"),
        (Processing(msgspec.structs.replace(TEXT, mask=None)), r"\(see `attention_mask`\)"),
        (Processing(TEXT, "", EmbeddingAnswer("logits", "mean")), "reads the output `logits`"),
        (Processing(TEXT, "", EmbeddingAnswer("vectors")), "needs an output with 2 axes"),
        (Processing(IMAGE, "", ClassAnswer("vectors", ("a",))), "it fills pixel_values"),
    ],
)
def test_a_description_that_does_not_fit_the_model_is_refused(tmp_path, description, message):
    """When the bundle is opened, not at the first request."""
    path = write_raw_bundle(tmp_path / "embed" / "1", "embed", description)

    with pytest.raises(BundleError, match=message):
        open_processor(open_bundle(path))


def test_labels_must_be_as_many_as_classes(tmp_path):
    """Else a label would be wrong."""
    few = msgspec.structs.replace(COLORS, answer=ClassAnswer("logits", ("red", "green")))

    with pytest.raises(BundleError, match="2 labels for the 3 classes"):
        open_processor(open_bundle(write_raw_bundle(tmp_path / "color" / "1", "color", few)))


def test_a_tokenizer_must_be_there_and_intact(tmp_path):
    """Its digest is in the manifest."""
    path = write_raw_bundle(tmp_path / "embed" / "1", "embed")
    (path / "tokenizer.json").write_bytes(b"{}")

    with pytest.raises(DigestError, match=r"tokenizer\.json"):
        open_bundle(path)
