"""Resemblyzer's speaker encoder: three layers of LSTM on 1.6 s of a mel spectrogram.

The package has weights as a checkpoint of PyTorch, `{"model_state": ...}`; `encoder` builds the module they belong to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from demi.tensors import Array, Feeds
from tests.wild.speech import HELD_OUT, RATE, SAMPLES, say
from tests.wild.task import Run

MELS, FRAMES, WINDOW, HOP = 40, 160, 400, 160


def encoder() -> Any:
    """Return the module without weights, for `demi export --model`."""
    import torch
    from torch import nn

    class VoiceEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(MELS, 256, 3, batch_first=True)
            self.linear = nn.Linear(256, 256)
            # Weights of the loss the package trained with, which its checkpoint holds as well.
            self.similarity_weight = nn.Parameter(torch.ones(1))
            self.similarity_bias = nn.Parameter(torch.ones(1))

        def forward(self, mels: torch.Tensor) -> torch.Tensor:
            _, (hidden, _) = self.lstm(mels)
            raw = torch.relu(self.linear(hidden[-1]))
            return raw / torch.norm(raw, dim=1, keepdim=True)

    return VoiceEncoder()


def _filters() -> Array:
    """Return Slaney's mel filters, float64[40, 201]: triangles of equal area, linear below 1 kHz, then logarithmic."""
    log_step = np.log(6.4) / 27

    def to_mel(hertz: Array) -> Array:
        return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1) / 1000) / log_step)

    def to_hertz(mel: Array) -> Array:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(log_step * (mel - 15)))

    edges = to_hertz(np.linspace(0, to_mel(np.array(RATE / 2)), MELS + 2))
    bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def mel_spectrogram(audio: Array) -> Array:
    """Return powers, float32[frames, 40], a frame every 10 ms; the volume is raised to -30 dB first."""
    loudness = 20 * np.log10(np.sqrt(np.mean(audio.astype(np.float64) ** 2)))
    louder = audio * 10 ** (max(0.0, -30 - loudness) / 20)
    padded = np.pad(louder, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    return (np.abs(np.fft.rfft(frames * window)) ** 2 @ _filters().T).astype(np.float32)


def _partials(audio: Array) -> Feeds:
    """Return overlapping windows of 1.6 s, float32[n, 160, 40]."""
    mels = mel_spectrogram(np.pad(audio, (0, max(0, HOP * FRAMES - audio.size))))
    starts = range(0, len(mels) - FRAMES + 1, 77)
    return {"mels": np.stack([mels[start : start + FRAMES] for start in starts])}


SPEAKERS = ("en", "en+f1", "en-us+m3", "en+m7")


def samples(_: Run) -> list[Feeds]:
    """Return sentences by four voices."""
    return [_partials(say(SAMPLES[index % len(SAMPLES)], voice)) for index, voice in enumerate(SPEAKERS)]


def heldout(_: Run) -> list[Feeds]:
    """Return other sentences, and a fifth voice."""
    return [
        _partials(say(HELD_OUT[index % len(HELD_OUT)], voice, 150))
        for index, voice in enumerate((*SPEAKERS, "en-us+f4"))
    ]


def embeddings(run: Run) -> list[Array]:
    """Return a speaker's vector for each held-out sentence: the mean over its windows."""
    means = [next(iter(run(feeds).values())).mean(axis=0) for feeds in heldout(run)]
    return [mean / np.linalg.norm(mean) for mean in means]


def apart(expected: list[Array], got: list[Array]) -> str:
    """Describe differing vectors: each cosine must be above 0.999."""
    cosines = [float(ours @ theirs) for ours, theirs in zip(expected, got, strict=True)]
    return "" if min(cosines) > 0.999 else f"cosines are {', '.join(f'{cosine:.5f}' for cosine in cosines)}"
