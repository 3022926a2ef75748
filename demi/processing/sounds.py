"""Sound to samples, with soundfile and soxr; the only module that imports them.

A file is untrusted: its length, channels and rate are read from its header and checked before it is unpacked.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from demi.errors import InputError, missing_package
from demi.processing.description import AudioInput
from demi.processing.prepared import RawRows, Row
from demi.tensors import Array, Feeds, TensorSpec

FORMATS = {"WAV": "WAV", "WAVEX": "WAV", "FLAC": "FLAC", "RF64": "WAV"}
"""Formats that are read, by their names in libsndfile."""

MOST_CHANNELS = 8
SLOWEST, FASTEST = 1_000, 384_000
"""Sampling rates that are read, in samples per second."""

_BLOCK = 1 << 16


class AudioPreprocessor:
    """Makes `input_values` of sound files. Thread-safe. Raises PackageError without the packages."""

    def __init__(self, description: AudioInput, specs: Mapping[str, TensorSpec]) -> None:
        self.description = description
        self.specs = specs
        length = specs[description.samples].shape[1]
        self.fixed_length = length if isinstance(length, int) else None
        _import_packages()

    @property
    def pads(self) -> bool:
        """Return whether sounds of different lengths may share a run: the model has a mask, or one length for all."""
        return self.description.mask is not None or self.fixed_length is not None

    def read(self, raw: RawRows, *, with_tokens: bool = False) -> list[Row]:
        """Return the samples of sounds, given as the bytes of their files. Raises InputError, naming the sound.

        A sound longer than the model takes is cut with `truncate`, and refused without.
        """
        rows = [self._samples(row, index, truncate=raw.truncate) for index, row in enumerate(raw.rows)]
        return [Row(unit_variance(row) if self.description.normalize else row) for row in rows]

    def stack(self, rows: Sequence[Row]) -> Feeds:
        """Return samples and mask, each [rows, samples], padded to the longest row or to the model's length."""
        audio = self.description
        lengths = np.array([len(row.values) for row in rows])
        width = self.fixed_length or int(lengths.max(initial=0))
        table = np.full((len(rows), width), audio.pad_value, np.float32)
        for index, row in enumerate(rows):
            table[index, : lengths[index]] = row.values
        feeds = {audio.samples: table.astype(self.specs[audio.samples].dtype.numpy, copy=False)}
        if audio.mask:
            feeds[audio.mask] = (np.arange(width) < lengths[:, None]).astype(self.specs[audio.mask].dtype.numpy)
        return feeds

    def _samples(self, row: object, index: int, *, truncate: bool) -> Array:
        assert isinstance(row, bytes)  # the reader of requests has seen to it
        samples = read_sound(row, self.description.rate, self.description.max_seconds, f"sound {index}")
        most = self.fixed_length
        if most is None or len(samples) <= most:
            return samples
        if not truncate:
            raise InputError(
                f"sound {index} has {len(samples):,} samples at {self.description.rate} Hz, the model takes {most:,}",
                hint="send a shorter sound, or ask for truncation with `truncate`",
            )
        return samples[:most]


def read_sound(data: bytes, rate: int, max_seconds: float, name: str) -> Array:
    """Return a sound as float32[samples] at `rate` samples a second: the mean of its channels, resampled if needed.

    Raises InputError for a file that is not WAV or FLAC, is damaged, empty, or longer than `max_seconds`.
    """
    soundfile, soxr = _import_packages()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, max_seconds, name)
            samples = _read_mono(file, int(max_seconds * file.samplerate) + 1)
            found = file.samplerate
    except InputError:
        raise
    except Exception as error:  # soundfile raises LibsndfileError, a RuntimeError, and others
        reason = str(getattr(error, "error_string", error)).rstrip(".")  # the whole message names a Python object
        raise InputError(f"{name} is not a sound that can be read: {reason}", hint="send WAV or FLAC") from error
    if len(samples) > max_seconds * found:
        raise _too_long(name, max_seconds)
    if not len(samples):
        raise InputError(f"{name} holds no samples", hint="is the file complete?")
    if not np.isfinite(samples).all():
        raise InputError(f"{name} holds samples that are NaN or infinite")
    if found != rate:
        samples = soxr.resample(samples, found, rate)
        if not len(samples):
            raise InputError(f"{name} is too short: it holds no samples at {rate} Hz")
    return np.asarray(samples, np.float32)


def unit_variance(samples: Array) -> Array:
    """Return samples with zero mean and unit variance, as Wav2Vec2FeatureExtractor does."""
    scaled: Array = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    return scaled


def _read_mono(file: Any, most: int) -> Array:
    """Read up to `most` samples in blocks: a header may promise fewer or more than there are."""
    parts: list[Array] = []
    read = 0
    while read < most:
        block = file.read(min(_BLOCK, most - read), dtype="float32", always_2d=True)
        if not len(block):
            break
        parts.append(block[:, 0] if block.shape[1] == 1 else block.mean(1, dtype=np.float32))
        read += len(block)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _check_header(file: Any, max_seconds: float, name: str) -> None:
    if file.format not in FORMATS:
        raise InputError(f"{name} is {file.format}, which is not read", hint="send WAV or FLAC")
    if file.channels > MOST_CHANNELS:
        raise InputError(f"{name} has {file.channels} channels, at most {MOST_CHANNELS} are read")
    if not SLOWEST <= file.samplerate <= FASTEST:
        raise InputError(f"{name} has {file.samplerate} samples a second; {SLOWEST:,} to {FASTEST:,} are read")
    if file.frames > max_seconds * file.samplerate:
        raise _too_long(name, max_seconds)


def _too_long(name: str, max_seconds: float) -> InputError:
    return InputError(f"{name} is longer than {max_seconds:g} seconds", hint="send it in parts")


def _import_packages() -> tuple[Any, Any]:
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise missing_package(error.name or "soundfile", "processing") from error
    return soundfile, soxr
