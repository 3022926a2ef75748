"""Speech of eSpeak NG's library at 16 kHz, equal on every machine, because the library comes from a wheel."""

from __future__ import annotations

from functools import cache

import numpy as np

from demi.tensors import Array
from examples.domains import voices
from examples.domains.voices import RATE, Utterance
from tests.wild.fetch import located

PACKAGE = "espeakng-loader"


@cache
def say(text: str, voice: str = "en", words_per_minute: int = 160) -> Array:
    """Return one text as float32 samples at 16 kHz, most of them between -0.5 and 0.5."""
    (spoken,) = voices.say(located(PACKAGE, "espeakng_loader"), [Utterance(text, voice, words_per_minute)])
    return spoken


VOICES = ("en", "en+f1", "en-us+m3", "en-us+f4", "en+m7")
"""Voices without breath, because its noise differs every second."""
SAMPLES = (
    "The ferry to the island does not run in winter.",
    "Please leave your message after the tone, and we will call you back.",
    "Half of the numbers were rounded, and nobody noticed.",
)
HELD_OUT = (
    "Ships stay in the harbour from December to March.",
    "Would you like your receipt in the bag, or by mail?",
    "The quick brown fox jumps over the lazy dog, twice.",
    "One, two, three, four, five: testing the microphone.",
)


def recording(texts: tuple[str, ...], seed: int, seconds: float = 0) -> Array:
    """Return a recording: texts by several voices, with pauses between them and a room's noise.

    It is as long as the texts take, or as many seconds as are asked for: the texts repeat.
    """
    random = np.random.default_rng(seed)
    parts, length, index = [np.zeros(RATE // 2, np.float32)], 0, 0
    while index < len(texts) or length < seconds * RATE:
        spoken = say(texts[index % len(texts)], VOICES[index % len(VOICES)], 140 + 20 * (index % 3))
        loudness = np.float32(random.uniform(0.4, 1.2))
        parts += [loudness * spoken, np.zeros(int(random.uniform(0.3, 1.2) * RATE), np.float32)]
        length, index = sum(part.size for part in parts), index + 1
    audio = np.concatenate(parts)[: int(seconds * RATE) or None]
    return audio + random.normal(0, 0.003, audio.size).astype(np.float32)
