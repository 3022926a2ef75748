"""T5 and Whisper folders become bundles that generate what transformers generates."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import transformers

import demi
from demi.bundles.bundle import open_bundle
from demi.calibration.gate.data import read_data
from demi.calibration.gate.diff import diff
from demi.errors import InputError
from demi.exporter.generation.rules import rules_of
from demi.processing.description import Languages
from demi.tensors import DType
from tests.calibration.bundles import edit_model, reseal
from tests.generating_folders import MULTILINGUAL, PROMPTS, SOUNDS, answered, t5, transcribed, whisper
from tests.raw_inputs import wav


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    """Return the folder of a tiny T5."""
    return t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def t5_bundle(t5_folder):
    """Return its bundle, measured on texts."""
    texts = str(t5_folder / "prompts.txt")
    result = demi.export(t5_folder, t5_folder / "out" / "t5", task="text2text-generation", samples=texts, report=False)
    return open_bundle(result.path)


@pytest.mark.nightly
def test_t5_generates_what_transformers_generates(t5_folder, t5_bundle):
    """Token for token, in FP32."""
    with demi.load(t5_bundle.path, precision="fp32") as model:
        found = model.generate(text=PROMPTS, max_tokens=20)

    expected = [answered(t5_folder, prompt, 20) for prompt in PROMPTS]
    assert expected == found
    assert len(set(" ".join(expected).split())) > 4


@pytest.mark.nightly
def test_the_encoder_is_a_bundle_in_its_decoders(t5_bundle):
    """Its outputs are half, and so are the inputs of the decoder that hold them."""
    encoder = t5_bundle.encoder()

    assert (("input_ids",), DType.FP16) == (
        tuple(spec.name for spec in encoder.manifest.inputs),
        encoder.manifest.outputs[0].dtype,
    )
    memory = [spec for spec in t5_bundle.manifest.inputs if ".encoder." in spec.name]
    assert {DType.FP16} == {spec.dtype for spec in memory}
    assert len(encoder.manifest.outputs) == len(memory) == 2


@pytest.mark.nightly
def test_t5_generates_in_half(t5_folder, t5_bundle):
    """Both parts in half; `accuracy.json` says how many tokens stay."""
    with demi.load(t5_bundle.path, precision="half", runtime="onnxruntime") as model:
        assert [answered(t5_folder, PROMPTS[0], 8)] == model.generate(text=PROMPTS[0], max_tokens=8)
        found = model.accuracy["generation"]

    assert (3, True) == (found["texts"], found["same"] > 0.9)
    assert [1, 2, 5, 9, 17, 33] == [group["first"] for group in found["by_step"]]


@pytest.mark.nightly
def test_a_check_generates_and_passes(t5_bundle):
    """On the texts of the export, with the tokens that it measured; the encoder is checked as well."""
    found = demi.check(t5_bundle.path)

    assert found
    assert t5_bundle.share_of_tokens() == found.facts.golden.tokens.same
    assert {"memory.0.key", "memory.0.value"} == {diff.output for diff in found.facts.encoder.comparison.outputs}


@pytest.mark.nightly
def test_a_check_finds_an_encoder_with_spoiled_weights(t5_bundle, tmp_path):
    """The texts differ, and so do the encoder's own outputs."""
    spoiled = tmp_path / "t5" / "1"
    shutil.copytree(t5_bundle.path, spoiled)
    edit_model(spoiled / "encoder", move_weights)
    reseal(spoiled)
    found = {result.gate: result for result in demi.check(spoiled).gate_results}

    assert any("at the export it was" in line for line in found["tokens differ"].errors)
    assert any("memory.0.key" in line for line in found["over budget"].errors)


@pytest.mark.nightly
def test_a_diff_generates_texts_of_the_user(t5_folder, t5_bundle):
    """Of both bundles, from the same file."""
    found = diff(t5_bundle.path, t5_bundle.path, read_data(str(t5_folder / "prompts.txt")))

    assert found.same_samples
    assert 3 == found.a.evaluation.tokens.texts


def move_weights(model: ir.Model) -> None:
    """Move every half weight by one place."""
    for value in model.graph.initializers.values():
        if value.dtype is ir.DataType.FLOAT16:
            value.const_value = ir.Tensor(np.roll(value.const_value.numpy(), 1), name=value.name)


@pytest.mark.wild
def test_whisper_transcribes_what_transformers_transcribes(tmp_path):
    """From the features of a WAV to tokens; sounds that are too long are refused unless they may be cut."""
    folder = whisper(tmp_path)
    result = demi.export(
        folder, folder / "out" / "whisper", task="automatic-speech-recognition", samples=str(folder / "sounds"),
        report=False,
    )  # fmt: skip

    with demi.load(result.path, precision="fp32") as model:
        found = model.generate(audio=[wav(sound, 16_000) for sound in SOUNDS], max_tokens=16)
        with pytest.raises(InputError, match="the model takes 1 s"):
            model.generate(audio=wav(SOUNDS[1].repeat(2), 16_000))

    expected = [transcribed(folder, sound, 16) for sound in SOUNDS]
    assert expected == found
    assert len(set(" ".join(expected).split())) > 3


@pytest.mark.wild
def test_whisper_writes_the_languages_that_transformers_writes(tmp_path):
    """The one that is named, or the most probable one."""
    folder = whisper(tmp_path, **MULTILINGUAL)
    result = demi.export(
        folder, folder / "out" / "whisper", task="automatic-speech-recognition", samples=str(folder / "sounds"),
        report=False,
    )  # fmt: skip
    sounds = [wav(sound, 16_000) for sound in SOUNDS]

    with demi.load(result.path, precision="fp32") as model:
        for language in (None, "en", "de", "fr"):
            expected = [transcribed(folder, sound, 16, language) for sound in SOUNDS]
            assert expected == model.generate(audio=sounds, max_tokens=16, language=language)


@pytest.mark.parametrize(
    ("language", "start", "detected"),
    [(None, (2, 3, 8, 63), True), ("german", (2, 4, 8, 63), False), ("<|fr|>", (2, 7, 8, 63), False)],
    ids=["none", "name", "token"],
)
def test_languages_come_from_the_settings_of_generation(language, start, detected):
    """A language that is set is written; without one, that of each sound is detected."""
    settings = transformers.GenerationConfig(
        decoder_start_token_id=2, eos_token_id=1, language=language, **MULTILINGUAL
    )
    model = SimpleNamespace(config=transformers.WhisperConfig(max_target_positions=32), generation_config=settings)

    rules = rules_of(model, Path())

    assert (start, Languages({"en": 3, "de": 4, "fr": 7}, 1, detected)) == (rules.start, rules.languages)


def test_speech_needs_sounds_to_measure_on(tmp_path):
    """Noise drawn at random would be no speech."""
    with pytest.raises(InputError, match="sound cannot be drawn"):
        demi.export(whisper(tmp_path), tmp_path / "out" / "whisper", task="automatic-speech-recognition", report=False)
