"""Outputs that FP32 itself answers with other values each time, which no comparison may take for an error of half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demi.tensors import Array, Feeds


@dataclass(frozen=True, slots=True)
class Varying:
    """The outputs of a model that differ from run to run, by name."""

    drawn: tuple[str, ...] = ()
    """By random numbers that the model draws: where both sides get the same ones, they are compared like any other."""
    unsteady: tuple[str, ...] = ()
    """Even with the same random numbers: they are never compared."""

    def judged(self, outputs: Feeds, *, live: bool = False) -> Feeds:
        """The outputs that can be compared: where both sides draw for themselves (`live`), none that is drawn."""
        left_out = {*self.unsteady, *(self.drawn if live else ())}
        return {name: array for name, array in outputs.items() if name not in left_out} if left_out else outputs

    def words(self, *, live: bool = False) -> list[str]:
        """One line for each output that differs from run to run: how it is compared, or that it is not."""
        same = "differs from run to run in FP32 itself, and is not compared"
        fixed = "differs from run to run by the random numbers it draws; both sides were given the same ones"
        return [f"`{name}` {same if live else fixed}" for name in self.drawn] + [
            f"`{name}` {same}" for name in self.unsteady
        ]


STEADY = Varying()
"""A model whose runs do not differ."""


def differing(one: Feeds, other: Feeds) -> tuple[str, ...]:
    """The outputs that two runs answered otherwise."""
    return tuple(name for name, array in one.items() if not _same(array, other[name]))


def varying(live: Sequence[Feeds], fixed: Sequence[Feeds]) -> Varying:
    """What differs between two runs as they are, and between two whose random numbers are the same."""
    unsteady = differing(*fixed)
    return Varying(tuple(name for name in differing(*live) if name not in unsteady), unsteady)


def _same(one: Array, other: Array) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f" and np.shape(one) == np.shape(other))
