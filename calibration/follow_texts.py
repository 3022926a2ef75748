"""Half follows FP32's texts, token by token, with a cache of its own: the error along a text, and the tokens that differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from demi.accuracy.compare import relative_l2
from demi.accuracy.token_agreement import Step
from demi.errors import InferenceError
from demi.generation.generator import Generator, Options, Prompt
from demi.generation.greedy import Greedy
from demi.tensors import Array, Feeds, TensorSpec

STEPS = 64
"""Most tokens of a text that are compared."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder in one precision: its inputs, and a function that runs it for these outputs."""

    inputs: Sequence[TensorSpec]
    run: Callable[[Feeds, Sequence[str]], Feeds]


@dataclass(frozen=True, slots=True)
class FollowedText:
    """One text: the tokens that both models got, and every step."""

    tokens: tuple[int, ...]
    steps: tuple[Step, ...]


def follow_text(
    generator: Generator,
    prompt: Prompt,
    exact: tuple[Decoder, Feeds | None] | None,
    half: tuple[Decoder, Feeds | None],
    recorded: Sequence[int] | None = None,
) -> FollowedText:
    """Return the steps of one text, for which both models get the tokens of FP32.

    Each model comes with its encoder's outputs for the prompt. With the `recorded` tokens of an earlier run, both get
    these, so that a close decision on another machine does not lead to another text; without `exact`, half's choices are
    compared with them. Raises InferenceError if a run fails, or FP32's logits are not finite.
    """
    assert exact is not None or recorded  # else there is nothing to follow
    forced = recorded or ()
    leader = _begin(generator, prompt, *exact) if exact else None
    follower = _begin(generator, prompt, *half)
    steps: list[Step] = []
    while len(steps) < len(forced) or (leader and not forced and not leader.finish):
        wanted = exact[0].run(leader.feeds, generator.outputs) if exact and leader else {}
        choice = leader.choose(wanted) if leader else forced[len(steps)]
        token = forced[len(steps)] if forced else choice
        got = half[0].run(follower.feeds, generator.outputs)
        steps.append(_compare(follower, wanted.get(generator.rules.logits), got, choice, generator.rules.logits))
        follower.force(token, got)
        if leader:
            leader.force(token, wanted)
    return FollowedText(tuple(follower.tokens), tuple(steps))


def _begin(generator: Generator, prompt: Prompt, decoder: Decoder, memory: Feeds | None) -> Greedy:
    return generator.begin(prompt, decoder.inputs, memory, Options(STEPS)).sequence


def _compare(follower: Greedy, wanted: Array | None, got: Feeds, choice: int, logits: str) -> Step:
    try:
        same, finite = follower.choose(got) == choice, True
    except InferenceError:  # NaN or infinity, which differ from any choice
        same = finite = False
    if wanted is None:
        return Step(same, math.nan, finite)
    return Step(same, float(relative_l2(wanted.astype(np.float32), got[logits].astype(np.float32))), finite)
