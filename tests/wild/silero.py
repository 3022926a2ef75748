"""Silero VAD: speech detection in frames of 32 ms, with a recurrent state.

Frames are made as silero-vad makes them: the end of the frame before stands in front of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from demi.tensors import Array, Feeds
from tests.wild.speech import HELD_OUT, RATE, SAMPLES, recording
from tests.wild.task import Run, Task

FRAME, CONTEXT = 512, 64
FRAMES = 1000
SPEECH = 0.5
"""Probabilities above are speech."""
UNDECIDED = 0.01


@dataclass(frozen=True, slots=True)
class Variant:
    """Inputs of one of the package's files."""

    names: tuple[str, ...] = ("input", "state")
    frame: int = FRAME
    """Samples in 32 ms; half as many at 8 kHz."""
    context: int = CONTEXT

    def feeds(self, frame: Array, state: Array) -> Feeds:
        """Return one frame's inputs."""
        rate = np.array(RATE if self.frame == FRAME else RATE // 2, np.int64)
        every = {"input": frame[None], "state": state, "sr": rate}
        return {name: every[name] for name in self.names}

    def frames(self, audio: Array) -> Array:
        """Return float32[frames, context + frame]."""
        spoken = audio if self.frame == FRAME else audio[::2]
        count = spoken.size // self.frame
        padded = np.concatenate([np.zeros(self.context, np.float32), spoken[: count * self.frame]])
        return np.lib.stride_tricks.sliding_window_view(padded, self.context + self.frame)[:: self.frame].copy()


def _stream(run: Run, variant: Variant, audio: Array) -> tuple[list[Feeds], Array]:
    """Yield every frame's inputs and its probability; each frame reads the state of the one before."""
    state, fed, found = np.zeros((2, 1, 128), np.float32), [], []
    for frame in variant.frames(audio):
        fed.append(variant.feeds(frame, state))
        answer = run(fed[-1])
        state = answer["stateN"]
        found.append(float(answer["output"][0, 0]))
    return fed, np.array(found)


def _sometimes(texts: tuple[str, ...], seed: int, variants: tuple[Variant, ...]) -> Callable[[Run], list[Feeds]]:
    """Return eight frames of every variant, spread over a recording of six seconds."""

    def frames(run: Run) -> list[Feeds]:
        audio = recording(texts, seed, 6)
        return [feeds for variant in variants for feeds in _stream(run, variant, audio)[0][10::22]]

    return frames


def _listening(variants: tuple[Variant, ...]) -> Callable[[Run], Array]:
    """Return the probabilities of a thousand frames for every variant, with the state fed back."""

    def listen(run: Run) -> Array:
        audio = recording(HELD_OUT, 2, FRAMES * FRAME / RATE)
        return np.concatenate([_stream(run, variant, audio)[1] for variant in variants])

    return listen


def judged_otherwise(expected: Array, got: Array) -> str:
    """Describe differing decisions, frame by frame; near FP32's own threshold both decisions are accepted."""
    decided = np.abs(expected - SPEECH) > UNDECIDED
    wrong = np.flatnonzero(decided & ((expected > SPEECH) != (got > SPEECH)))
    where = ", ".join(f"{at} ({got[at]:.3f} in place of {expected[at]:.3f})" for at in wrong[:3])
    return f"{len(wrong)} of {len(expected)} frames: {where}" if len(wrong) else ""


def streaming(*variants: Variant) -> Task:
    """Return the task of a file that takes one frame and a state."""
    return Task(
        _sometimes(SAMPLES, 0, variants), _sometimes(HELD_OUT, 1, variants), _listening(variants), judged_otherwise
    )


def _block(texts: tuple[str, ...], seed: int, frames: int) -> Callable[[Run], list[Feeds]]:
    """Return two blocks of frames; the second reads the state of the first."""

    def blocks(run: Run) -> list[Feeds]:
        return _in_blocks(run, Variant().frames(recording(texts, seed, 2 * frames * FRAME / RATE)), frames)[0]

    return blocks


def _in_blocks(run: Run, frames: Array, size: int) -> tuple[list[Feeds], list[Array]]:
    hidden = cell = np.zeros((1, 1, 128), np.float32)
    fed, found = [], []
    for at in range(0, len(frames), size):
        fed.append({"input": frames[at : at + size], "h": hidden, "c": cell})
        answer = run(fed[-1])
        hidden, cell = answer["hn"], answer["cn"]
        found.append(answer["speech_probs"])
    return fed, found


def _listening_in_blocks(run: Run) -> Array:
    frames = Variant().frames(recording(HELD_OUT, 2, FRAMES * FRAME / RATE))
    return np.concatenate(_in_blocks(run, frames, 512)[1])


SEQUENCE = Task(_block(SAMPLES, 0, 96), _block(HELD_OUT, 1, 80), _listening_in_blocks, judged_otherwise)
"""The file that takes many frames at once."""

WITH_RATE = Variant(("input", "state", "sr"))
AT_8_KHZ = Variant(("input", "state", "sr"), FRAME // 2, CONTEXT // 2)
