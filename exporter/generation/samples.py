"""Samples of a decoder: its inputs at steps of real greedy generation in FP32, the first with its empty cache among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from demi.exporter.generation.rules import Rules
from demi.generation.generator import Generator, Prompt
from demi.generation.greedy import Greedy
from demi.tensors import Feeds

STEPS = (0, 1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Steps whose inputs become samples; ranges and errors change fastest at the beginning."""

MOST_PROMPTS = 8
DRAWN_LENGTHS = (6, 6, 9, 3)
"""Lengths of drawn prompts: two of them share their shapes, so that a trial finds rows to join."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The texts to generate in FP32 and in half: prompts, and what the FP32 encoder makes of them."""

    generator: Generator
    prompts: tuple[Prompt, ...]
    memories: tuple[Feeds | None, ...]


Run = Callable[[Feeds], Feeds]


def drawn_prompts(generator: Generator, vocabulary: int, seed: int, rules: Rules) -> list[Prompt]:
    """Return prompts of token ids drawn at random, without those that end a text."""
    rng = np.random.default_rng(seed)
    usual = np.setdiff1d(np.arange(vocabulary), np.array(rules.ends, np.int64))
    lengths = [min(length, generator.longest) for length in DRAWN_LENGTHS]
    return [generator.prompt_of([int(each) for each in rng.choice(usual, length)]) for length in lengths]


def sampled_steps(sequences: Sequence[Greedy], run: Run, steps: Sequence[int] = STEPS) -> Iterator[Feeds]:
    """Generate each sequence with `run`, the decoder in FP32, and yield its inputs at `steps`."""
    for sequence in sequences:
        for step in range(max(steps) + 1):
            if sequence.finish:
                break
            feeds = sequence.feeds
            if step in steps:
                yield feeds
            sequence.take(run(feeds))
