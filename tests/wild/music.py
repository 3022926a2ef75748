"""Basic Pitch: transcription of music. Two seconds at 22,050 Hz, and 88 keys in 172 frames.

Windows are made as basic-pitch makes them.
"""

from __future__ import annotations

import numpy as np

from demi.tensors import Array, Feeds
from tests.wild.speech import RATE as SPEECH_RATE
from tests.wild.speech import say
from tests.wild.task import Run

RATE, WINDOW, OVERLAP = 22_050, 2 * 22_050 - 256, 30 * 256
INPUT = "serving_default_input_2:0"
NOTES = "StatefulPartitionedCall:1"


def tone(midi: int, seconds: float, brightness: float) -> Array:
    """Return a plucked string: decaying harmonics, the higher ones faster."""
    t = np.arange(int(seconds * RATE)) / RATE
    pitch = 440 * 2 ** ((midi - 69) / 12)
    harmonics = [
        brightness**n / (n + 1) * np.sin(2 * np.pi * pitch * (n + 1) * t) * np.exp(-(1.5 + 0.8 * n) * t)
        for n in range(8)
        if pitch * (n + 1) < RATE / 2
    ]
    return np.sum(harmonics, axis=0) * np.minimum(1, t * 200)


def melody(chords: tuple[tuple[int, ...], ...], beat_s: float, brightness: float, seed: int) -> Array:
    """Return a sequence of chords, each ringing on for two beats, with a little noise."""
    audio = np.zeros(int((len(chords) + 2) * beat_s * RATE))
    for index, chord in enumerate(chords):
        start = int(index * beat_s * RATE)
        for midi in chord:
            played = tone(midi, 2 * beat_s, brightness)
            audio[start : start + played.size] += 0.2 * played
    noise = np.random.default_rng(seed).normal(0, 0.001, audio.size)
    return (audio + noise).astype(np.float32)


def _windows(audio: Array) -> list[Feeds]:
    """Return windows of two seconds, with an overlap of thirty frames."""
    padded = np.concatenate([np.zeros(OVERLAP // 2, np.float32), audio])
    starts = range(0, padded.size, WINDOW - OVERLAP)
    return [{INPUT: _padded(padded[start : start + WINDOW])[None, :, None]} for start in starts]


def _padded(window: Array) -> Array:
    return np.pad(window, (0, WINDOW - window.size))


def _spoken(text: str) -> Array:
    """Return speech at this model's sample rate."""
    spoken = say(text, "en+f1", 120)
    at = np.arange(int(spoken.size * RATE / SPEECH_RATE)) * SPEECH_RATE / RATE
    return np.interp(at, np.arange(spoken.size), spoken).astype(np.float32)


SCALE = ((60,), (62,), (64,), (65,), (67,), (69,), (71,), (72,))
CADENCE = ((60, 64, 67), (65, 69, 72), (67, 71, 74), (60, 64, 67, 72))
BASS = ((33,), (40,), (45,), (43,), (38,), (31,))
ARPEGGIO = ((57, 84), (60,), (64, 88), (69,), (76, 81), (72,), (69, 93), (64,))
TUNE = ((76,), (75,), (76, 45), (75,), (76, 52), (71,), (74, 57), (72,), (69, 45), (60, 64), (69, 52))
JAZZ = ((50, 65, 69, 72), (55, 65, 71, 76), (48, 64, 67, 71, 74))


def samples(_: Run) -> list[Feeds]:
    """Return a scale, a cadence, a bass, an arpeggio, and speech."""
    scale, cadence = melody(SCALE, 0.4, 0.7, 0), melody(CADENCE, 0.6, 0.9, 1)
    bass, arpeggio = melody(BASS, 0.3, 0.8, 4), melody(ARPEGGIO, 0.2, 0.6, 5)
    music = [window for audio in (scale, cadence, bass, arpeggio) for window in _windows(audio)[:2]]
    return [*music, _windows(_spoken("La la la, this is a song without notes."))[0]]


def heldout(_: Run) -> list[Feeds]:
    """Return a tune over a bass, jazz chords, and a hummed line."""
    music = [*_windows(melody(TUNE, 0.25, 0.8, 2))[:2], *_windows(melody(JAZZ, 0.7, 0.6, 3))[:2]]
    return [*music, _windows(_spoken("Do re mi fa so, so much for singing."))[0]]


SHORTEST = 11
"""Frames of the shortest note that basic-pitch reports, 128 ms."""


def pitches(run: Run) -> list[tuple[int, ...]]:
    """Return the keys that are played in each held-out window: above 0.3 for at least the shortest note."""
    found = []
    for feeds in heldout(run):
        sounds = run(feeds)[NOTES][0] > 0.3
        lasting = np.lib.stride_tricks.sliding_window_view(sounds, SHORTEST, axis=0).all(axis=-1).any(axis=0)
        found.append(tuple(int(key) for key in np.flatnonzero(lasting)))
    return found
