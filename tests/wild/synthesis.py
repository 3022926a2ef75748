"""One synthesis by eSpeak NG's library: `python synthesis.py LIBRARY DATA VOICE WORDS_PER_MINUTE TEXT`.

Writes the sample rate as a line, then int16 samples. In a process of its own, since what the library says depends on
what it has said before.
"""

from __future__ import annotations

import ctypes
import sys

RETRIEVAL, UTF8, BY_CHARACTER, SPEED = 1, 1, 1, 1


def main() -> None:
    """Synthesize the text."""
    path, data, voice, speed, text = sys.argv[1:]
    chunks: list[bytes] = []
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    @kind
    def take(samples: ctypes._Pointer[ctypes.c_short], count: int, _: int | None) -> int:
        if count > 0 and samples:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    library = ctypes.CDLL(path)
    rate = library.espeak_Initialize(RETRIEVAL, 0, data.encode(), 0)
    library.espeak_SetSynthCallback(take)
    if library.espeak_SetVoiceByName(voice.encode()):
        sys.exit(f"eSpeak NG has no voice {voice}")
    library.espeak_SetParameter(SPEED, int(speed), 0)
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, BY_CHARACTER, 0, UTF8, None, None)
    library.espeak_Synchronize()
    sys.stdout.buffer.write(f"{rate}\n".encode() + b"".join(chunks))


if __name__ == "__main__":
    main()
