"""Agreement of generated tokens with FP32's: the share that stays the same, and the error along the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EDGES = (1, 2, 5, 9, 17, 33, 65, 129, 257)
"""The first step of each group of steps, which grow: errors change fastest at the beginning."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a text: whether half chose FP32's token, and the relative L2 of its logits against FP32's."""

    same: bool
    error: float
    """NaN where FP32's logits are not known."""
    finite: bool = True
    """False where half's logits are NaN or infinite."""


@dataclass(frozen=True, slots=True)
class StepGroup:
    """Steps `first` to `last` of all texts, counted from 1."""

    first: int
    last: int
    tokens: int
    same: float
    """Share of tokens that are FP32's."""
    relative_l2: float
    """Median error of the logits."""

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"


@dataclass(frozen=True, slots=True)
class TokenAgreement:
    """Tokens that half chooses after FP32's tokens so far, with a cache of its own, beside FP32's choice."""

    texts: int
    tokens: int
    same: float
    """Share of tokens that are FP32's."""
    whole_texts: int
    """Texts of which every token is FP32's: half generates them alone as well."""
    first_difference: int | None
    """The earliest step, counted from 1, at which half chooses another token; None where it never does."""
    by_step: tuple[StepGroup, ...]
    non_finite: int = 0
    """Steps at which half has no choice: NaN or infinity where FP32 is finite."""

    def __str__(self) -> str:
        differs = f": the first difference is at step {self.first_difference}" if self.first_difference else ""
        return f"half chooses {self.same:.2%} of {self.tokens:,} tokens as FP32 does{differs}"


def token_agreement(texts: Sequence[Sequence[Step]]) -> TokenAgreement:
    """Return the agreement over texts, each with its steps in order."""
    steps = [step for text in texts for step in text]
    first = [place for text in texts for place, step in enumerate(text, start=1) if not step.same]
    return TokenAgreement(
        texts=len(texts),
        tokens=len(steps),
        same=_share(steps),
        whole_texts=sum(all(step.same for step in text) for text in texts),
        first_difference=min(first, default=None),
        by_step=tuple(_groups(texts)),
        non_finite=sum(not step.finite for step in steps),
    )


def _groups(texts: Sequence[Sequence[Step]]) -> list[StepGroup]:
    longest = max((len(text) for text in texts), default=0)
    found = []
    for first, following in zip(EDGES, (*EDGES[1:], longest + 1), strict=True):
        last = min(following - 1, longest)
        steps = [step for text in texts for step in text[first - 1 : last]]
        if steps:
            error = float(np.median([step.error for step in steps]))
            found.append(StepGroup(first, last, len(steps), _share(steps), error))
    return found


def _share(steps: Sequence[Step]) -> float:
    return sum(step.same for step in steps) / len(steps) if steps else 1.0
