"""Speech: which of eight words is said; synthetic speech.

    python -m examples.domains.speech

eSpeak NG (package `espeakng-loader`) says each word with several voices, at several speeds and pitches; a word is one
second of sound with noise. Two of the voices are held out. The model takes the sound itself: its first layers compute a
logarithmic mel spectrogram, and stay FP32 in training, because BF16 has too few digits for a Fourier transform.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from examples.batches import draws
from examples.demo import DemoError
from examples.domains.asking import ask_file
from examples.domains.domain import Domain, Measure
from examples.domains.steps import main
from examples.domains.voices import RATE, Utterance, say

INSTALL = "pip install --no-deps espeakng-loader"
WORDS = ("yes", "no", "up", "down", "left", "right", "stop", "go")
VOICES = ("en", "en+f1", "en-us+m3", "en+m1", "en-us+f2")
HELD_OUT_VOICES = ("en-us+f4", "en+m7")
TAKES = 5
"""Utterances of each word by each voice."""
BATCH = 32
WINDOW, HOP, MELS = 400, 160, 40
"""Samples of a spectrum, samples between two spectra, and bands of frequency."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word as it was said, and its number."""

    samples: np.ndarray
    number: int


def words(voices: Sequence[str], seed: int) -> list[Word]:
    """Return every word by every voice at random speeds and pitches. Raises DemoError without the package."""
    spec = find_spec("espeakng_loader")
    if spec is None or spec.origin is None:
        raise DemoError(f"this example needs espeakng-loader: {INSTALL}")
    random = np.random.default_rng(seed)
    asked = [
        (number, Utterance(text, voice, int(random.integers(120, 220)), int(random.integers(30, 70))))
        for number, text in enumerate(WORDS)
        for voice in voices
        for _ in range(TAKES)
    ]
    said = say(Path(spec.origin).parent, [utterance for _, utterance in asked])
    return [Word(samples, number) for (number, _), samples in zip(asked, said, strict=True)]


def recording(word: Word, random: np.random.Generator) -> np.ndarray:
    """Return one second, float32[16000]: the word somewhere in it, at some loudness, in noise 5 to 25 dB below it."""
    spoken = word.samples[:RATE]
    sound = np.zeros(RATE, np.float32)
    start = random.integers(0, RATE - len(spoken) + 1)
    sound[start : start + len(spoken)] = spoken * random.uniform(0.3, 1)
    level = np.sqrt(np.mean(np.square(sound))) * 10 ** (-random.uniform(5, 25) / 20)
    return np.clip(sound + random.normal(0, level, RATE), -1, 1).astype(np.float32)


class Keywords:
    """The task for `demi train`: one second of sound in, eight scores out."""

    def __init__(self) -> None:
        self.words = words(VOICES, seed=1)

    def model(self) -> Any:
        """Return the network."""
        return build()

    def batches(self, position: Any) -> Iterator[Any]:
        """Yield recordings and the numbers of their words; each batch follows from its number alone."""
        import torch

        for draw in draws(position):
            chosen = [self.words[row] for row in draw.integers(0, len(self.words), BATCH)]
            sounds = np.stack([unit_variance(recording(word, draw)) for word in chosen])
            yield torch.from_numpy(sounds), torch.tensor([word.number for word in chosen])

    def loss(self, model: Any, batch: Any) -> Any:
        """Return the cross-entropy, computed in FP32."""
        from torch.nn import functional

        return functional.cross_entropy(model(batch[0])["logits"].float(), batch[1])


def unit_variance(sound: np.ndarray) -> np.ndarray:
    """Return a sound with zero mean and unit variance, as the served model scales it."""
    return np.asarray((sound - sound.mean()) / np.sqrt(sound.var() + 1e-7), np.float32)


def filters() -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and sines of a windowed Fourier transform, float32[402, 400], and mel bands, float32[40, 201]."""
    bins = WINDOW // 2 + 1
    angles = 2 * np.pi * np.outer(np.arange(bins), np.arange(WINDOW)) / WINDOW
    waves = np.concatenate([np.cos(angles), np.sin(angles)]) * np.hanning(WINDOW)
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), MELS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    places = np.linspace(0, RATE / 2, bins)
    up = (places - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - places) / np.diff(edges)[1:, None]
    return waves.astype(np.float32), np.clip(np.minimum(up, down), 0, None).astype(np.float32)


def build() -> Any:
    """Return the untrained network: `input_values` float32[batch, samples] in, `logits` float32[batch, 8] out."""
    import torch
    from torch import nn

    class Spectrogram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            waves, bands = (torch.from_numpy(each) for each in filters())
            self.register_buffer("waves", waves.unsqueeze(1))
            self.register_buffer("bands", bands)

        def forward(self, sound: torch.Tensor) -> torch.Tensor:
            parts = nn.functional.conv1d(sound.unsqueeze(1), self.waves, stride=HOP)
            real, imaginary = parts.chunk(2, dim=1)
            return torch.log(torch.matmul(self.bands, real * real + imaginary * imaginary) + 1e-3)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spectrogram = Spectrogram()
            self.layers = nn.Sequential(
                nn.BatchNorm1d(MELS),
                nn.Conv1d(MELS, 96, 5, stride=2), nn.BatchNorm1d(96), nn.ReLU(),
                nn.Conv1d(96, 96, 5, stride=2), nn.BatchNorm1d(96), nn.ReLU(),
                nn.Conv1d(96, 96, 5), nn.BatchNorm1d(96), nn.ReLU(),
            )  # fmt: skip
            self.head = nn.Linear(96, len(WORDS))

        def forward(self, input_values: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.head(self.layers(self.spectrogram(input_values)).amax(2))}

    return Network()


def write_extractor(folder: Path) -> None:
    """Write `preprocessor_config.json`: sound at 16 kHz with zero mean and unit variance."""
    extractor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": RATE,
        "padding_value": 0.0,
        "do_normalize": True,
        "return_attention_mask": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2))


def prepare(folder: Path) -> None:
    """Write the description of the sound, the words' names, and the voices held out as WAV files by word."""
    import soundfile

    write_extractor(folder)
    (folder / "labels.txt").write_text("\n".join(WORDS))
    random = np.random.default_rng(2)
    for number, word in enumerate(words(HELD_OUT_VOICES, seed=2)):
        path = folder / "heldout" / WORDS[word.number] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, recording(word, random), RATE)


def ask(address: str, model: str, folder: Path) -> str:
    """Post the first recording of `yes`."""
    sound = min((folder / "heldout" / "yes").iterdir())
    found = ask_file(address, model, sound)
    return f"a recording of `yes` is heard as `{found['label'][0]}` (score {found['scores'].max():.3f})"


DOMAIN = Domain(
    name="speech",
    data="synthetic: eight words said by eSpeak NG (espeakng-loader), with noise; two voices held out",
    task="examples.domains.speech:Keywords",
    steps=250,
    prepare=prepare,
    measures=(Measure("accuracy", "accuracy"),),
    ask=ask,
    export=("--feature-extractor", "{folder}", "--labels", "{folder}/labels.txt"),
    train=("--keep-fp32", "spectrogram"),
)


if __name__ == "__main__":
    raise SystemExit(main(DOMAIN))
