"""Synthesis by eSpeak NG's library: `python synthesis.py LIBRARY DATA`, with a JSON list of utterances on stdin.

An utterance is `{"text", "voice", "words_per_minute"}`, and perhaps `pitch` from 0 to 100. Writes the sample rate as a
line, then for each utterance the number of its samples as a line, and the samples as int16. Each is said in a process of
its own, since what the library says depends on what it has said before.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

RETRIEVAL, UTF8, BY_CHARACTER, SPEED, PITCH = 1, 1, 1, 1, 3
MIDDLE = 50
"""The pitch that a voice has by itself."""


def main() -> None:
    """Synthesize all utterances."""
    path, data = sys.argv[1:]
    library = ctypes.CDLL(path)
    for number, utterance in enumerate(json.load(sys.stdin)):
        rate, samples = _apart(library, data, utterance)
        start = f"{rate}\n" if number == 0 else ""
        sys.stdout.buffer.write(f"{start}{len(samples) // 2}\n".encode() + samples)


def _apart(library: ctypes.CDLL, data: str, utterance: dict[str, Any]) -> tuple[int, bytes]:
    """Return the rate and the samples of one utterance, said by a fork of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            with os.fdopen(writing, "wb") as pipe:
                rate, samples = _say(library, data, utterance)
                pipe.write(f"{rate}\n".encode() + samples)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        rate, _, samples = pipe.read().partition(b"\n")
    if os.waitpid(child, 0)[1]:
        sys.exit(f"eSpeak NG could not say {utterance}")
    return int(rate), samples


def _say(library: ctypes.CDLL, data: str, utterance: dict[str, Any]) -> tuple[int, bytes]:
    chunks: list[bytes] = []
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    @kind
    def take(samples: ctypes._Pointer[ctypes.c_short], count: int, _: int | None) -> int:
        if count > 0 and samples:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    rate: int = library.espeak_Initialize(RETRIEVAL, 0, data.encode(), 0)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # voices with breath are different every second without it
    library.espeak_SetSynthCallback(take)
    if library.espeak_SetVoiceByName(utterance["voice"].encode()):
        sys.exit(f"eSpeak NG has no voice {utterance['voice']}")
    library.espeak_SetParameter(SPEED, int(utterance["words_per_minute"]), 0)
    if utterance.get("pitch", MIDDLE) != MIDDLE:
        library.espeak_SetParameter(PITCH, int(utterance["pitch"]), 0)
    encoded = utterance["text"].encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, BY_CHARACTER, 0, UTF8, None, None)
    library.espeak_Synchronize()
    return rate, b"".join(chunks)


if __name__ == "__main__":
    main()
