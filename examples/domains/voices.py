"""Speech of eSpeak NG's library at 16 kHz, equal on every machine, because the library comes from a wheel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

RATE = 16_000
LIBRARY, DATA = "libespeak-ng.so", "espeak-ng-data"
"""The library and its data, below the folder of the package `espeakng-loader`."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """Sentences and their speakers."""

    text: str
    voice: str = "en"
    words_per_minute: int = 160
    pitch: int = 50
    """From 0 to 100; 50 is the voice's own."""


def say(package: Path, utterances: Sequence[Utterance]) -> list[np.ndarray]:
    """Return utterances as float32 samples at 16 kHz, most of them between -0.5 and 0.5.

    `package` is the folder with the library and its data. Raises CalledProcessError for a voice that it does not have.
    """
    program = Path(__file__).with_name("synthesis.py")
    command = [sys.executable, str(program), str(package / LIBRARY), str(package / DATA)]
    asked = json.dumps([asdict(each) for each in utterances]).encode()
    said = subprocess.run(command, input=asked, capture_output=True, check=True, timeout=300).stdout
    rate, _, rest = said.partition(b"\n")
    found = []
    for _ in utterances:
        count, _, rest = rest.partition(b"\n")
        spoken = np.frombuffer(rest[: 2 * int(count)], np.int16).astype(np.float32) / 32768
        rest = rest[2 * int(count) :]
        found.append(resample_poly(spoken, RATE, int(rate)).astype(np.float32))
    return found
