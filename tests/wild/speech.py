"""Speech of eSpeak NG's library, at 16 kHz: the same on every machine, since the library comes out of a wheel."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
from scipy.signal import resample_poly

from demi.tensors import Array
from tests.wild.fetch import located

RATE = 16_000
PACKAGE = "espeakng-loader"

_RETRIEVAL, _UTF8, _POSITION_CHARACTER, _SPEED = 1, 1, 1, 1


class _Library:
    """The loaded library; it has one voice and one callback at a time, and none is used from two threads."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(located(PACKAGE, "espeakng_loader/libespeak-ng.so")))
        data = located(PACKAGE, "espeakng_loader/espeak-ng-data").parent
        self.rate = self.library.espeak_Initialize(_RETRIEVAL, 0, str(data).encode(), 0)
        self.chunks: list[Array] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = kind(self._take)  # which must live as long as the library may call it
        self.library.espeak_SetSynthCallback(self.callback)

    def _take(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _: int | None) -> int:
        if count > 0 and samples:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
        return 0

    def say(self, text: str, voice: str, words_per_minute: int) -> Array:
        """The samples of one text, at the library's own rate."""
        self.chunks.clear()
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(f"eSpeak NG has no voice {voice}")
        self.library.espeak_SetParameter(_SPEED, words_per_minute, 0)
        encoded = text.encode()
        self.library.espeak_Synth(encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, _UTF8, None, None)
        self.library.espeak_Synchronize()
        return np.concatenate(self.chunks)


@cache
def _library() -> _Library:
    return _Library()


@cache
def say(text: str, voice: str = "en", words_per_minute: int = 160) -> Array:
    """One text as float32 samples at 16 kHz, most of them between -0.5 and 0.5."""
    library = _library()
    spoken = library.say(text, voice, words_per_minute)
    return resample_poly(spoken, RATE, library.rate).astype(np.float32)


VOICES = ("en", "en+f3", "en-us+m3", "en-us+f5", "en+m7")
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
    """Somebody's recording: texts by several voices, pauses between them, and a room's noise under all.

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
