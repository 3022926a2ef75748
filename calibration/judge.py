"""The judge: what a choice of half nodes costs, measured by the switchable emulator against FP32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from calibration.switchable import Emulator
from demi.budget import Budget
from demi.compare import Comparison, TensorDiff, compare, relative_l2
from demi.errors import InferenceError
from demi.tensors import Array, Feeds

DEFAULT_SCALE = 1e-2
"""Relative L2 by which an output's error is judged when its limits say nothing about relative L2."""


@dataclass(frozen=True, slots=True)
class TensorError:
    """How far one inner tensor is from FP32: relative L2 (infinite when only FP32 is finite), and the largest difference."""

    relative: float
    max_abs: float


class Judge:
    """Measures plans on a few sets of samples. Owns nothing: the emulator's owner closes it; counts its runs."""

    def __init__(self, emulator: Emulator, feeds: Sequence[Feeds], budget: Budget) -> None:
        self._emulator = emulator
        self._feeds = list(feeds)
        self._budget = budget
        self.trials = 0
        self.references = [emulator.run(frozenset(), sample) for sample in self._feeds]

    def compare(self, half: AbstractSet[str], *, stores: bool = False) -> Comparison:
        """The outputs with these nodes in half, against FP32 and the budget.

        A run that fails (a wrong index out of bounds, say) answers with NaN: it is as wrong as can be.
        """
        self.trials += 1
        measured = (self._answer(half, i, stores) for i in range(len(self._feeds)))
        return compare(self.references, measured, self._budget)

    def _answer(self, half: AbstractSet[str], index: int, stores: bool) -> Feeds:
        try:
            return self._emulator.run(half, self._feeds[index], stores=stores)
        except InferenceError:
            return {name: wrong_answer(array) for name, array in self.references[index].items()}

    def shares(self, half: AbstractSet[str]) -> tuple[float, ...]:
        """For each output, the squared error these nodes' stored values cause, in units of its squared limit."""
        comparison = self.compare(half, stores=True)
        return tuple((diff.relative_l2 / self.scale(diff.output)) ** 2 for diff in comparison.outputs)

    def scale(self, output: str) -> float:
        """The relative L2 that counts as the whole budget of an output."""
        limit = self._budget.limits(output).relative_l2
        return limit if limit else DEFAULT_SCALE

    def load(self, comparison: Comparison) -> float:
        """The share of the budget that is used by the worst output; infinite when a value is not finite or wrong.

        Of all limits but top1, which is no measure of size, the one that is used most counts.
        """
        return max((self._used(diff) for diff in comparison.outputs), default=0.0)

    def _used(self, diff: TensorDiff) -> float:
        used = [diff.relative_l2 / self.scale(diff.output)]
        if diff.limits.max_abs is not None:
            used.append(_ratio(diff.max_abs, diff.limits.max_abs))
        if diff.limits.cosine is not None:  # 1 - cosine grows with the square of the error
            used.append(math.sqrt(_ratio(max(0.0, 1 - diff.cosine), 1 - diff.limits.cosine)))
        return max(used)

    def tensor_errors(self, half: AbstractSet[str], names: Sequence[str]) -> dict[str, TensorError] | None:
        """The errors of inner tensors with these nodes in half, the worst over the samples, a few tensors at a time.

        None when a run fails: then no tensor of it can be read.
        """
        self.trials += 1
        errors: dict[str, TensorError] = {}
        for sample in self._feeds:
            for chunk in self._emulator.chunks(names):
                reference = self._emulator.read(frozenset(), sample, chunk)
                try:
                    measured = self._emulator.read(half, sample, chunk)
                except InferenceError:
                    return None
                for name, array in reference.items():
                    errors[name] = _worse(errors.get(name), tensor_error(array, measured[name]))
        return errors

    def read_reference(self, names: Sequence[str]) -> list[Feeds]:
        """Inner FP32 tensors and inputs, by name, for each set of samples."""
        sets: list[Feeds] = []
        for sample in self._feeds:
            sets.append({name: sample[name] for name in names if name in sample})
            for chunk in self._emulator.chunks(names):
                sets[-1] |= self._emulator.read(frozenset(), sample, chunk)
        return sets


def _ratio(error: float, limit: float) -> float:
    if limit > 0:
        return error / limit
    return math.inf if error else 0.0


def _worse(known: TensorError | None, new: TensorError) -> TensorError:
    if known is None:
        return new
    return TensorError(max(known.relative, new.relative), max(known.max_abs, new.max_abs))


def wrong_answer(array: Array) -> Array:
    """An answer that is wrong in every element."""
    return np.full_like(array, np.nan) if array.dtype.kind == "f" else np.logical_not(array).astype(array.dtype)


def tensor_error(reference: Array, measured: Array) -> TensorError:
    """The error of one tensor; a wrong integer or boolean weighs as a large one, however few there are."""
    if reference.shape != measured.shape:
        return TensorError(math.inf, math.inf)
    if reference.dtype.kind != "f":
        wrong = int(np.count_nonzero(reference != measured))
        return TensorError(max(math.sqrt(wrong / max(reference.size, 1)), 0.1) if wrong else 0.0, float(wrong > 0))
    finite = np.isfinite(reference) & np.isfinite(measured)
    gap = np.abs(np.subtract(reference, measured, where=finite, out=np.zeros_like(reference)))
    return TensorError(relative_l2(reference, measured), float(gap.max(initial=0.0)))
