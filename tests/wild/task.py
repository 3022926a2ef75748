"""Task of a wild model: its inputs, and the answer that its users take from its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demi.tensors import Feeds

Run = Callable[[Feeds], Feeds]
"""A model as a function: arrays by name in, arrays by name out."""


def different(expected: Any, got: Any) -> str:
    """Describe the differences of two lists of decisions; empty if they are equal."""
    if len(expected) != len(got):
        return f"{len(got)} in place of {len(expected)}"
    wrong = [f"{theirs!r} in place of {ours!r}" for ours, theirs in zip(expected, got, strict=True) if ours != theirs]
    return "" if not wrong else f"{len(wrong)} of {len(expected)}: {'; '.join(wrong[:3])}"


@dataclass(frozen=True, slots=True)
class Task:
    """Inputs as users have them, some for measuring and others held out, and the answer from the outputs."""

    samples: Callable[[Run], list[Feeds]]
    """The samples; they may need a run of the model itself, whose state is fed back."""
    heldout: Callable[[Run], list[Feeds]]
    answer: Callable[[Run], Any]
    """The decisions on the held-out inputs."""
    differs: Callable[[Any, Any], str] = different
    """Describes the differences of an answer from the FP32 model's; empty if there are none."""
