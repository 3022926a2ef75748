"""Sound to log-mel features, as Whisper's feature extractor computes them, in NumPy."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from demi.errors import InputError
from demi.processing.description import LogMelInput
from demi.processing.prepared import RawRows, Row
from demi.processing.sounds import read_sound
from demi.tensors import Array, Feeds, TensorSpec

HIGHEST_HZ = 8000.0
"""The highest frequency of Whisper's filters."""


class LogMelPreprocessor:
    """Makes `input_features` of sound files, each padded with silence to the model's length. Thread-safe."""

    def __init__(self, description: LogMelInput, specs: Mapping[str, TensorSpec]) -> None:
        self.description = description
        self.specs = specs
        mel_filters(description.bands, description.window, description.rate)  # before the first request

    @property
    def pads(self) -> bool:
        """Return that sounds of any length may share a run: all have the same number of frames."""
        return True

    def read(self, raw: RawRows, *, with_tokens: bool = False) -> list[Row]:
        """Return the features of sounds, given as the bytes of their files. Raises InputError, naming the sound.

        A sound longer than the model takes is cut with `truncate`, and refused without.
        """
        return [self._row(row, index, truncate=raw.truncate) for index, row in enumerate(raw.rows)]

    def stack(self, rows: Sequence[Row]) -> Feeds:
        """Return features FP32[rows, bands, frames]."""
        name = self.description.features
        return {name: np.stack([row.values for row in rows]).astype(self.specs[name].dtype.numpy, copy=False)}

    def _row(self, row: object, index: int, *, truncate: bool) -> Row:
        assert isinstance(row, bytes)  # the reader of requests has seen to it
        sound = self.description
        samples = read_sound(row, sound.rate, sound.max_seconds, f"sound {index}")
        if len(samples) > sound.samples and not truncate:
            raise InputError(
                f"sound {index} has {len(samples) / sound.rate:.1f} s, the model takes {sound.seconds} s",
                hint="send it in parts, or ask for truncation with `truncate`",
            )
        return Row(log_mel(samples, sound), seconds=len(samples) / sound.rate)


def log_mel(samples: Array, sound: LogMelInput) -> Array:
    """Return float32[bands, frames] of float32[samples]: cut or padded with zeros to the model's length first.

    Powers of the frequencies in each window, in bands that grow wider with their height; then their logarithm, at most 8
    powers of ten below the loudest.
    """
    whole = np.zeros(sound.samples, np.float64)
    whole[: min(len(samples), sound.samples)] = samples[: sound.samples]
    half = sound.window // 2
    padded = np.pad(whole, half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, sound.window)[:: sound.hop][: sound.samples // sound.hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(sound.window) / sound.window)
    powers = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2
    bands = powers @ mel_filters(sound.bands, sound.window, sound.rate)
    logs = np.log10(np.maximum(bands.T, 1e-10))
    return np.asarray((np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0, np.float32)


@functools.cache
def mel_filters(bands: int, window: int, rate: int) -> Array:
    """Return triangular filters float64[frequencies, bands] on Slaney's mel scale, each with the same area."""
    edges = _hertz(np.linspace(0.0, _mel(HIGHEST_HZ), bands + 2))
    frequencies = np.linspace(0, rate // 2, 1 + window // 2)
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    filters: Array = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))
    return filters


_LINEAR_HZ, _LINEAR_MEL, _STEP = 1000.0, 15.0, 27.0 / np.log(6.4)
"""Slaney's scale is linear up to 1000 Hz, which is 15 mel, and logarithmic above."""


def _mel(hertz: float) -> float:
    return float(hertz * 3 / 200 if hertz < _LINEAR_HZ else _LINEAR_MEL + np.log(hertz / _LINEAR_HZ) * _STEP)


def _hertz(mel: Array) -> Array:
    found: Array = np.where(mel < _LINEAR_MEL, mel * 200 / 3, _LINEAR_HZ * np.exp((mel - _LINEAR_MEL) / _STEP))
    return found
