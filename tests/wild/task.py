"""What a wild model is for: its inputs, and the answer its users take from its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demi.tensors import Feeds

Run = Callable[[Feeds], Feeds]
"""A model: arrays by name in, arrays by name out."""


def different(expected: Any, got: Any) -> str:
    """How two lists of decisions differ; empty when they are equal."""
    if len(expected) != len(got):
        return f"{len(got)} in place of {len(expected)}"
    wrong = [f"{theirs!r} in place of {ours!r}" for ours, theirs in zip(expected, got, strict=True) if ours != theirs]
    return "" if not wrong else f"{len(wrong)} of {len(expected)}: {'; '.join(wrong[:3])}"


@dataclass(frozen=True, slots=True)
class Task:
    """Inputs as users have them, some to measure on and others held out, and what is read from the outputs."""

    samples: Callable[[Run], list[Feeds]]
    """May run the model itself: a state that is fed back comes from there."""
    heldout: Callable[[Run], list[Feeds]]
    answer: Callable[[Run], Any]
    """The decisions on the held-out inputs."""
    differs: Callable[[Any, Any], str] = different
    """How an answer differs from the FP32 model's; empty when it does not."""
