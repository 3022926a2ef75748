"""Generation from a bundle: the loop of steps, its limits, and descriptions that do not fit."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest

import demi
from demi.bundles.bundle import open_bundle, write_manifest
from demi.errors import BundleError, InferenceError, InputError
from demi.generation.generator import open_generator
from demi.processing.description import CachePair, Languages, Processing, decode, encode
from tests.generating_bundles import (
    BREAKS,
    COUNTING,
    ENDLESS,
    LISTEN,
    REPEATING,
    WRITE,
    WRITING,
    write_decoder,
    write_encoder_decoder,
)
from tests.raw_inputs import wav


def loaded(path):
    """Load a bundle in half precision, which these models have not."""
    return demi.load(path, precision="half", runtime="onnxruntime")


def test_a_text_is_continued_with_its_cache(tmp_path):
    """Each step gets one id and the cache; the model counts what it has seen, until its end token."""
    with loaded(write_decoder(tmp_path / "count")) as model:
        assert ["three four five six seven eight"] == model.generate(text="one two")
        assert ["three four", "two three"] == model.generate(text=["one two", "five"], max_tokens=2)


def test_an_empty_text_stands_for_the_start_token(tmp_path):
    """As a model with a token for the beginning of a text has it."""
    with loaded(write_decoder(tmp_path / "count")) as model:
        assert ["two three four"] == model.generate(text="", max_tokens=3)


def test_a_stop_text_ends_a_text(tmp_path):
    """It is not part of it."""
    with loaded(write_decoder(tmp_path / "count")) as model:
        assert ["two three "] == model.generate(text="one", stop=["four"])


def test_an_encoder_runs_once_and_its_decoder_reads_it(tmp_path):
    """The encoder is a bundle in that of the decoder."""
    with loaded(write_encoder_decoder(tmp_path / "repeat")) as model:
        assert ["two one seven"] == model.generate(text="two one seven")


def test_the_language_of_a_sound(tmp_path):
    """Detected in a step of its own, or named; another one is an error that lists them."""
    noise, silence = (wav(np.full(8000, level, np.float32), 16_000) for level in (0.5, 0.0))
    with loaded(write_encoder_decoder(tmp_path / "write", WRITING, LISTEN, WRITE)) as model:
        assert ["three", "six"] == model.generate(audio=[noise, silence])
        assert ["six", "six"] == model.generate(audio=[noise, silence], language="de")
        with pytest.raises(InputError, match="does not write `fr`"):
            model.generate(audio=noise, language="fr")
    with (
        loaded(write_encoder_decoder(tmp_path / "repeat")) as model,
        pytest.raises(InputError, match="no choice of languages"),
    ):
        model.generate(text="one", language="en")


def test_the_usual_language_of_a_model(tmp_path):
    """Where it detects none."""
    languages = Languages({"en": 1, "de": 2}, place=1, detected=False)
    usual = msgspec.structs.replace(
        WRITING, generation=msgspec.structs.replace(WRITING.generation, languages=languages)
    )
    with loaded(write_encoder_decoder(tmp_path / "write", usual, LISTEN, WRITE)) as model:
        assert ["three"] == model.generate(audio=wav(np.zeros(8000, np.float32), 16_000))


def test_logits_that_are_not_finite_are_an_error(tmp_path):
    """An arbitrary token would look like an answer."""
    with loaded(write_decoder(tmp_path / "breaks", BREAKS)) as model:
        assert ["two three four"] == model.generate(text="one", max_tokens=3)
        with pytest.raises(InferenceError, match="not finite at token 3"):
            model.generate(text="one")


def test_a_text_that_leaves_no_room_is_refused(tmp_path):
    """Unless it may be cut."""
    with loaded(write_decoder(tmp_path / "count")) as model:
        with pytest.raises(InputError, match="18 tokens"):
            model.generate(text="one " * 18)
        assert 1 == len(model.generate(text="one " * 18, truncate=True, max_tokens=1))


def test_no_tokens_cannot_be_asked_for(tmp_path):
    """At least one."""
    with loaded(write_decoder(tmp_path / "count")) as model, pytest.raises(InputError, match="0 tokens"):
        model.generate(text="one", max_tokens=0)


def test_a_model_of_tensors_does_not_generate(tmp_path):
    """And says so."""
    from tests.server.bundles import SCALE, write_bundle

    with loaded(write_bundle(tmp_path / "scale", SCALE)) as model, pytest.raises(InputError, match="does not generate"):
        model.generate(text="one")


def changed(description: Processing, **fields: object) -> Processing:
    """Return a description with other rules."""
    return msgspec.structs.replace(description, generation=msgspec.structs.replace(description.generation, **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ids": "past"}, "fills the inputs"),
        ({"logits": "present", "cache": (CachePair("logits", "past"),)}, "cannot choose tokens"),
        ({"logits": "nothing"}, "`nothing`"),
        ({"cache": (CachePair("logits", "past"),)}, "cannot be the cache"),
        ({"cache": (CachePair("present", "past"), CachePair("present", "more"))}, "fills the inputs"),
        ({"suppressed": (9,)}, "names token 9, but the vocabulary has 9"),
        ({"ends": (1 << 30,)}, "the vocabulary has 9"),
    ],
    ids=["ids", "logits", "no-logits", "cache", "inputs", "suppressed", "ends"],
)
def test_rules_that_do_not_fit_the_model_are_refused(tmp_path, fields, message):
    """A bundle is untrusted: its description is checked against the tensors before anything runs."""
    path = write_decoder(tmp_path / "count", description=changed(ENDLESS, **fields))

    with pytest.raises(BundleError, match=message):
        open_generator(open_bundle(path))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (changed(COUNTING, cache=()), "`cache` is empty"),
        (changed(COUNTING, start=(1,) * 100_000), "leaves no room"),
        (changed(REPEATING, start=()), "cannot be empty"),
        (
            msgspec.structs.replace(COUNTING, input=msgspec.structs.replace(COUNTING.input, pair=True)),
            "not from a pair",
        ),
    ],
    ids=["cache", "start", "no-start", "pair"],
)
def test_contradictions_are_refused(description, message):
    """Although every field is valid by itself."""
    with pytest.raises(BundleError, match=message):
        decode(encode(description), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"code": "import os"},
        {"kind": "python"},
        {"max_length": 0},
        {"ends": [-1]},
        {"cache": [{"output": "a", "input": ""}]},
    ],
    ids=["unknown-field", "unknown-kind", "no-length", "negative-token", "no-name"],
)
def test_hostile_rules_are_refused(change):
    """Unknown fields and kinds, and values out of range: rules are data and name nothing to run."""
    found = msgspec.json.decode(encode(COUNTING))
    found["generation"] |= change

    with pytest.raises(BundleError, match="not valid"):
        decode(msgspec.json.encode(found), "here")


def test_a_decoder_needs_the_encoder_that_it_reads(tmp_path):
    """A bundle without one is refused when it is opened."""
    path = write_decoder(tmp_path / "count", description=REPEATING)

    with pytest.raises(BundleError, match="fills the inputs"):
        open_generator(open_bundle(path))


def test_an_encoder_is_verified_with_its_decoder(tmp_path):
    """The decoder's manifest has the digests of all files."""
    path = write_encoder_decoder(tmp_path / "repeat")
    assert "repeat" == open_bundle(path).encoder().manifest.name
    model = path / "encoder" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")

    with pytest.raises(BundleError, match=r"encoder/model\.onnx"):
        open_bundle(path)


def test_an_encoder_that_reads_other_files_is_refused(tmp_path):
    """Its model is checked as the decoder's is: it may read no file that its manifest does not list."""
    path = write_encoder_decoder(tmp_path / "repeat")
    weights = onnx.load(path / "encoder" / "model.onnx")
    weights.graph.initializer[0].ClearField("raw_data")
    weights.graph.initializer[0].ClearField("int64_data")
    weights.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    place = weights.graph.initializer[0].external_data.add()
    place.key, place.value = "location", "../model.onnx"
    (path / "encoder" / "model.onnx").write_bytes(weights.SerializeToString())
    for folder in (path / "encoder", path):  # with digests that are right
        bundle = open_bundle(folder, verify=False)
        write_manifest(folder, bundle.manifest)

    with pytest.raises(BundleError, match="reads weights from"):
        open_bundle(path)


def test_a_step_takes_one_token_and_the_whole_cache(tmp_path):
    """The first takes the text with a cache of no tokens."""
    bundle = open_bundle(write_decoder(tmp_path / "count"))
    generator = open_generator(bundle)
    (prompt,) = generator.prepare(_rows("one two three"))
    text = generator.begin(prompt, bundle.manifest.inputs)

    first = text.feeds
    assert ([[1, 2, 3]], (1, 1, 0, 1)) == (first["input_ids"].tolist(), first["past"].shape)
    logits = np.eye(9, dtype=np.float32)[[7]]
    text.take({"logits": logits, "present": np.zeros((1, 1, 3, 1), np.float32)})
    assert ([[7]], (1, 1, 3, 1)) == (text.feeds["input_ids"].tolist(), text.feeds["past"].shape)


def _rows(*texts: str):
    from demi.processing.prepared import RawRows

    return RawRows(texts)
