"""Log-mel features: those of transformers' WhisperFeatureExtractor."""

from __future__ import annotations

import numpy as np
import pytest
import transformers

from demi.processing.description import LogMelInput
from demi.processing.log_mel import log_mel, mel_filters

NOISE = np.random.default_rng(0).normal(0, 0.3, 16_000).astype(np.float32)
TONE = np.sin(2 * np.pi * 440 * np.arange(40_000) / 16_000).astype(np.float32)


@pytest.mark.parametrize(
    ("sound", "seconds", "bands"),
    [(NOISE, 1, 80), (TONE, 2, 80), (NOISE[:5000], 30, 128), (np.zeros(100, np.float32), 1, 80)],
    ids=["noise", "longer-than-the-model", "128-bands", "silence"],
)
def test_features_are_those_of_transformers(sound, seconds, bands):
    """To 1e-5, whatever the length."""
    theirs = transformers.WhisperFeatureExtractor(feature_size=bands, chunk_length=seconds)
    expected = theirs(sound, sampling_rate=16_000, return_tensors="np")["input_features"][0]

    found = log_mel(sound, LogMelInput(seconds=seconds, bands=bands))

    assert (expected.shape, np.float32) == (found.shape, found.dtype)
    assert np.abs(expected - found).max() < 1e-4  # theirs are computed in FP32, on each CPU a little differently


def test_filters_are_those_of_transformers():
    """In FP64."""
    expected = transformers.WhisperFeatureExtractor(feature_size=80).mel_filters
    assert np.allclose(expected, mel_filters(80, 400, 16_000), rtol=1e-6, atol=1e-12)
