"""Errors that scatter: a plan is measured again with other roundings.

Where a few elements decide the error of an output, it depends on how single roundings fall: with an eighth of the half
nodes in FP32 it may be a third, or three times as large. The plan with the smallest measured error is then a lucky one,
and new inputs show the error of the others. So a plan that verifies is repeated with a random eighth of its nodes in
FP32, and it must stay within the budget but for one of the repetitions, and within it on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from demi.accuracy.compare import Comparison
from demi.calibration.emulation.trials import TrialRunner, load_on_new_inputs
from demi.exporter.planning.verified_plan import VERIFIED, Verifier

CLEAR = 0.3
"""Share of the budget up to which a plan is not repeated: its error would have to be three times as large."""

DROPPED = 1 / 8
"""Share of the half nodes that a repetition leaves in FP32."""

REPETITIONS = 4

FEWEST = 2
"""Repetitions after which a plan is accepted if they differ little, or stay far from the budget."""

STEADY = 1.2
"""Ratio of the largest to the smallest load up to which errors do not scatter."""

FAR = 0.5
"""Share of the allowed load that is far from it."""


@dataclass(frozen=True, slots=True)
class Repetitions:
    """Measurements of a plan and of its repetitions."""

    loads: tuple[float, ...]
    """The share of the budget that new inputs may use, of the plan first."""
    contributions: list[dict[str, float]]
    """Each set's contribution to the squared error of each output: the mean."""

    @property
    def load(self) -> float:
        """Return the largest load but one; that of the plan itself, where it was not repeated.

        The mean square of all loads must be within the whole budget: one repetition in five that is wrong altogether, as
        a router's other choice is, stands for one input in five.
        """
        if len(self.loads) == 1:
            return self.loads[0]
        mean = math.sqrt(sum(load**2 for load in self.loads) / len(self.loads))
        return max(sorted(self.loads)[-2], VERIFIED * mean)


class Repeated:
    """Verifier that repeats a plan with other roundings before it accepts it.

    Plans are verified by `verifier` first, and measured by `runner` on all samples. `quick` repeats them, on all samples
    or on those that add most to the error.
    """

    def __init__(self, verifier: Verifier, runner: TrialRunner, quick: TrialRunner) -> None:
        self._verifier, self._runner, self._quick = verifier, runner, quick
        self._known: dict[frozenset[str], Repetitions] = {}

    def verify(self, half: AbstractSet[str]) -> tuple[Comparison, float]:
        """Compare the outputs with these nodes in half; also return the share of the budget that new inputs may use."""
        comparison, load = self._verifier.verify(half)
        if not comparison or not CLEAR < load <= VERIFIED:
            return comparison, load
        return comparison, max(load, self.repeat(half).load)

    def repeat(self, half: AbstractSet[str]) -> Repetitions:
        """Return the measurements of a plan, with repetitions where its load is not clear."""
        key = frozenset(half)
        if key not in self._known:
            self._known[key] = self._repeat(key)
        return self._known[key]

    def _repeat(self, half: frozenset[str]) -> Repetitions:
        measured = self._runner.contributions_by_output(half)
        loads = [load_on_new_inputs(measured)]
        if not CLEAR < loads[0] <= VERIFIED:
            return Repetitions(tuple(loads), measured)
        first, squares = self._quick.contributions_by_output(half), []
        for fewer in repetitions(half):
            again = self._quick.contributions_by_output(fewer)
            loads.append(loads[0] * _ratio(load_on_new_inputs(again), load_on_new_inputs(first)))
            squares.append(_growth(again, first))
            if _is_decided(loads):
                break
        return Repetitions(tuple(loads), [_grown(each, squares) for each in measured])


def _is_decided(loads: Sequence[float]) -> bool:
    """Return True if more repetitions would not change the verdict: two failed, one failed by far, or the first few agree."""
    if sum(load > VERIFIED for load in loads) > 1 or sum(load**2 for load in loads) > 1 + REPETITIONS:
        return True
    most = max(loads)
    return len(loads) > FEWEST and (most <= FAR * VERIFIED or most <= min(STEADY * min(loads), VERIFIED))


def repetitions(half: AbstractSet[str]) -> Iterator[frozenset[str]]:
    """Yield the same few subsets of a set of nodes each time, each without another random eighth of them."""
    names = sorted(half)
    order = np.random.default_rng(0).permutation(len(names))
    size = max(1, round(DROPPED * len(names)))
    for number in range(REPETITIONS if len(names) > 1 else 0):
        dropped = np.roll(order, -number * size)[:size]
        yield frozenset(half) - {names[index] for index in dropped}


def _growth(again: Sequence[Mapping[str, float]], first: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return by output the ratio of the squared errors of two runs."""
    return {name: _ratio(sum(each[name] for each in again), sum(each[name] for each in first)) for name in first[0]}


def _grown(contributions: Mapping[str, float], squares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return contributions multiplied by their mean growth over the plan itself and its repetitions."""
    runs = 1 + len(squares)
    return {
        name: value * (1.0 + sum(each[name] for each in squares)) / runs if value else 0.0
        for name, value in contributions.items()
    }


def _ratio(again: float, first: float) -> float:
    return again / first if 0 < first < math.inf else 1.0
