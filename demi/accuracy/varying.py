"""Outputs that differ from run to run in FP32 itself, which must not count as errors of half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demi.tensors import Array, Feeds


@dataclass(frozen=True, slots=True)
class Varying:
    """Names of the outputs of a model that differ from run to run."""

    drawn: tuple[str, ...] = ()
    """Outputs that depend on random numbers; they are compared where both sides get the same numbers."""
    unsteady: tuple[str, ...] = ()
    """Outputs that differ even with the same random numbers; they are never compared."""

    def comparable(self, outputs: Feeds, *, live: bool = False) -> Feeds:
        """Return the outputs that can be compared; with `live`, where both sides draw their own numbers, no drawn ones."""
        left_out = {*self.unsteady, *(self.drawn if live else ())}
        return {name: array for name, array in outputs.items() if name not in left_out} if left_out else outputs

    def describe(self, *, live: bool = False) -> list[str]:
        """Return one line for each output that differs from run to run: how it is compared, or that it is not."""
        same = "differs from run to run in FP32 itself, and is not compared"
        fixed = "differs from run to run by the random numbers it draws; both sides got the same ones"
        return [f"`{name}` {same if live else fixed}" for name in self.drawn] + [
            f"`{name}` {same}" for name in self.unsteady
        ]


STEADY = Varying()
"""A model whose outputs are the same in every run."""


def differing(one: Feeds, other: Feeds) -> tuple[str, ...]:
    """Return the names of the outputs that differ between two runs."""
    return tuple(name for name, array in one.items() if not _same(array, other[name]))


def varying(live: Sequence[Feeds], fixed: Sequence[Feeds]) -> Varying:
    """Return the outputs that differ between two ordinary runs, and between two runs with the same random numbers."""
    unsteady = differing(*fixed)
    return Varying(tuple(name for name in differing(*live) if name not in unsteady), unsteady)


def _same(one: Array, other: Array) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f" and np.shape(one) == np.shape(other))
