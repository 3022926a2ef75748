"""Sound to samples: equal to transformers' own, and sounds that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2FeatureExtractor

from demi.errors import InputError
from demi.processing.description import AudioInput
from demi.processing.prepared import RawRows
from demi.processing.sounds import AudioPreprocessor, read_sound
from demi.tensors import DType, TensorSpec
from tests.raw_inputs import AUDIO, wav

FREE = {name: TensorSpec(name, DType.FP32, ("batch", "samples")) for name in ("input_values", "attention_mask")}


def samples(*rows: bytes, description: AudioInput = AUDIO, specs=FREE, truncate: bool = False) -> dict[str, np.ndarray]:
    """Return the model's inputs for sounds."""
    found = AudioPreprocessor(description, specs)
    return found.stack(found.read(RawRows(rows, truncate=truncate)))


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_samples_are_those_of_transformers(form):
    """Bit for bit, normalized to zero mean and unit variance."""
    sound = (np.random.default_rng(0).normal(0.1, 0.1, 16000) * 32767).astype(np.int16).astype(np.float32) / 32768
    extractor = Wav2Vec2FeatureExtractor()

    ours = samples(wav(sound, 16000, form), description=AudioInput())["input_values"]

    assert extractor(sound, sampling_rate=16000, return_tensors="np")["input_values"].tobytes() == ours.tobytes()


def test_padding_has_a_mask():
    """Sounds of different lengths, for a model that takes a mask."""
    with_mask = AudioInput(mask="attention_mask", rate=8000, normalize=False)
    long, short = np.ones(900, np.float32), np.ones(400, np.float32)

    found = samples(wav(long), wav(short), description=with_mask)

    assert [900, 400] == found["attention_mask"].sum(1).tolist()
    assert 0 == found["input_values"][1, 400:].any()


def test_channels_become_their_mean():
    """Stereo is mixed."""
    stereo = np.stack([np.full(500, 0.5), np.full(500, -0.25)], axis=1).astype(np.float32)

    assert {0.125} == set(samples(wav(stereo))["input_values"].ravel().tolist())


def test_a_tone_keeps_its_pitch_at_another_rate():
    """Resampling changes the number of samples, not the sound."""
    tone = np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000).astype(np.float32)

    found = read_sound(wav(tone, 48_000), 16_000, 10, "x")

    assert 16_000 == len(found)
    assert 440 == int(np.argmax(np.abs(np.fft.rfft(found))))


@pytest.mark.parametrize("truncate", [False, True])
def test_a_model_of_one_length(truncate):
    """Longer sounds are cut when asked, else refused; shorter ones are padded."""
    fixed = {"input_values": TensorSpec("input_values", DType.FP32, ("batch", 500))}
    if truncate:
        assert (1, 500) == samples(wav(), specs=fixed, truncate=True)["input_values"].shape
        assert (1, 500) == samples(wav(np.ones(3, np.float32)), specs=fixed)["input_values"].shape
        return
    with pytest.raises(InputError, match=r"sound 0 has 800 samples at 8000 Hz, the model takes 500"):
        samples(wav(), specs=fixed)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "^sound 0 is not a sound that can be read: Format not recognised"),
        (b"RIFF....WAVE", "not a sound"),
        (b"ID3\x03" + b"\0" * 100, "not a sound"),
        (wav(form="AIFF"), "AIFF, which is not read"),
        (wav(np.zeros(0, np.float32)), "no samples"),
        (wav(np.full(9, np.nan, np.float32)), "NaN or infinite"),
        (wav(np.zeros((9, 9), np.float32)), "9 channels"),
        (wav(rate=100, samples=np.ones(9, np.float32)), "100 samples a second"),
        (wav(np.zeros(16_001, np.float32)), "longer than 2 seconds"),
        (wav(np.zeros(4_000_000, np.float32), form="FLAC"), "longer than 2 seconds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # bytes hold the time of their making
)
def test_malformed_sounds_are_refused(data, message):
    """A small FLAC of silence, which would unpack to hours, among them."""
    with pytest.raises(InputError, match=message):
        samples(data)


@given(st.binary(max_size=80), st.integers(0, 80))
@settings(deadline=None)
def test_damage_never_escapes(junk, place):
    """Any bytes in any place of a file: samples, or an InputError."""
    good = wav()
    data = good[:place] + junk + good[place + len(junk) :]

    assert 1 == outcome(data) or str(outcome(data)).startswith("sound 0")


def outcome(data: bytes) -> object:
    """Return the number of sounds that were read, or the error."""
    try:
        return len(samples(data)["input_values"])
    except InputError as error:
        return error.message
