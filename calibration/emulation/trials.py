"""Trials: the errors of a choice of half nodes, measured by the switchable emulator against FP32."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparer, Comparison, TensorDiff
from demi.calibration.emulation.confidence import hardest_alone, upper_bound
from demi.calibration.emulation.switchable import Emulator
from demi.calibration.emulation.tensor_errors import TensorError, tensor_error, worse_of
from demi.errors import InferenceError
from demi.tensors import Array, Feeds

DEFAULT_SCALE = 1e-2
"""Limit on an output's relative L2 if its own limits do not include relative L2."""


HARDEST = 0.9
"""Weight of the hardest sample's error: alone it may use the whole budget, when all may use nine tenths."""


CACHE_BYTES = 256 << 20
"""Maximum bytes of FP32 inner tensors that a runner caches."""


_Trial = tuple[frozenset[str], frozenset[str], bool]
"""Half nodes, nodes held single, and `stores`: equal trials have equal results."""


@dataclass(frozen=True, slots=True)
class _Measurement:
    """Result of a trial."""

    comparison: Comparison
    contributions: list[dict[str, float]]
    """The contribution of each set of samples to the squared error of each output."""


class TrialRunner:
    """Runner of trials: measures choices of half nodes on a few sets of samples.

    It counts its runs and caches their results. The emulator belongs to the caller, who closes it.
    """

    def __init__(
        self,
        emulator: Emulator,
        feeds: Sequence[Feeds],
        budget: Budget,
        unsteady: Sequence[str] = (),
        known: Mapping[int, Feeds] | None = None,
        typical: Mapping[str, float] | None = None,
    ) -> None:
        """Run FP32 on every set of samples that is not in `known`.

        `unsteady` outputs differ from run to run in FP32 itself and always count as right. `known` holds FP32's outputs
        by the identity of the set of samples. `typical` is the mean square of each output's elements on all samples, if
        these are some of them.
        """
        self._emulator = emulator
        self.feeds = list(feeds)
        self._budget = budget
        self._unsteady = tuple(unsteady)
        self.trials = 0
        known = known or {}
        new = [sample for sample in self.feeds if id(sample) not in known]
        answers = emulator.run_each([(frozenset(), sample) for sample in new])
        self.references = [known[id(each)] if id(each) in known else _right(next(answers)) for each in self.feeds]
        self._typical = typical
        self._known: dict[_Trial, _Measurement] = {}
        self._inner = _InnerCache(emulator)

    def on(self, feeds: Sequence[Feeds]) -> TrialRunner:
        """Return a runner of the same model and budget on some of the samples; InferenceError if they do not run.

        FP32's outputs for sets of this runner are reused. The budget stays that of all samples: where outputs are small
        on some of them, a larger share of theirs is as much of it.
        """
        known = {id(sample): answer for sample, answer in zip(self.feeds, self.references, strict=True)}
        return TrialRunner(
            self._emulator, feeds, self._budget, self._unsteady, known, self._typical or self._mean_squares
        )

    def compare(self, half: AbstractSet[str], *, stores: bool = False) -> Comparison:
        """Compare the outputs with these nodes in half with FP32 and the budget.

        The outputs of a run that fails, for example because of an index out of bounds, count as NaN.
        """
        return self._measured(half, stores).comparison

    def verify(self, half: AbstractSet[str]) -> tuple[Comparison, float]:
        """Compare the outputs with these nodes in half; return the share of the budget that new inputs may use as well.

        That is at least the share used on the samples; see `load_on_new_inputs`.
        """
        each = self.contributions_by_output(half)
        comparison = self.compare(half)
        return comparison, max(self.load(comparison), load_on_new_inputs(each))

    def contributions(self, half: AbstractSet[str]) -> list[float]:
        """Return each set's contribution to the squared error of all, in units of the limits, with these nodes in half.

        Errors are weighed by the norm of the outputs: a set of tiny outputs contributes little, however wrong they are.
        """
        return [sum(share.values()) for share in self.contributions_by_output(half)]

    def contributions_by_output(self, half: AbstractSet[str]) -> list[dict[str, float]]:
        """Return each set's contribution to the squared error by output; the same runs give the comparison."""
        return self._measured(half, stores=False).contributions

    def _measured(self, half: AbstractSet[str], stores: bool) -> _Measurement:
        return next(self._each([half], stores))

    def _each(self, halves: Sequence[AbstractSet[str]], stores: bool) -> Iterator[_Measurement]:
        """Yield the measurement of each choice of half nodes; the next ones run while the caller uses one."""
        keys = [(frozenset(half), self._emulator.held, stores) for half in halves]
        answers = self._answers([key[0] for key in dict.fromkeys(keys) if key not in self._known], stores)
        for key in keys:
            if key not in self._known:
                self.trials += 1
                self._known[key] = self._measure(itertools.islice(answers, len(self.feeds)))
            yield self._known[key]

    def _answers(self, halves: Sequence[AbstractSet[str]], stores: bool) -> Iterator[Feeds]:
        """Yield the outputs of all sets for each choice of half nodes, in order."""
        answers = self._emulator.run_each([(half, sample) for half in halves for sample in self.feeds], stores=stores)
        for answer, reference in zip(answers, itertools.cycle(self.references), strict=False):
            if isinstance(answer, InferenceError):
                answer = {name: wrong_answer(array) for name, array in reference.items()}
            yield answer | {name: reference[name] for name in self._unsteady}

    def _measure(self, answers: Iterator[Feeds]) -> _Measurement:
        whole = Comparer(self._budget)
        contributions = [self._contribution(answer, index, whole) for index, answer in enumerate(answers)]
        return _Measurement(whole.result(), contributions)

    def _contribution(self, answer: Feeds, index: int, whole: Comparer) -> dict[str, float]:
        """Return the contribution of one set with this answer, and add its sums to those of all."""
        one = Comparer(self._budget)
        one.add(self.references[index], answer)
        whole.merge(one)
        size, total = self._sizes[index], self._total
        return {
            diff.output: _contribution(diff, answer, size, total, self.scale(diff.output))
            for diff in one.result().outputs
        }

    @functools.cached_property
    def _total(self) -> dict[str, float]:
        """The squared norms of FP32's outputs on all sets."""
        sizes = self._sizes
        return {name: sum(size[name] for size in sizes) for name in sizes[0]} if sizes else {}

    @functools.cached_property
    def _sizes(self) -> list[dict[str, float]]:
        """For each set of samples, the squared norms of FP32's outputs."""
        return [{name: _size(array) for name, array in reference.items()} for reference in self.references]

    def shares(self, half: AbstractSet[str], *, stores: bool = True) -> tuple[float, ...]:
        """Return the squared error of these nodes for each output, in units of its squared limit.

        With `stores`, only their results and weights are rounded, and not the tensors that they read.
        """
        return next(self.shares_of_each([half], stores=stores))

    def shares_of_each(self, halves: Sequence[AbstractSet[str]], *, stores: bool = True) -> Iterator[tuple[float, ...]]:
        """Yield the shares of several choices of half nodes; the next ones run while the caller uses a result."""
        for found in self._each(halves, stores):
            yield tuple((diff.relative_l2 / self.scale(diff.output)) ** 2 for diff in found.comparison.outputs)

    def scale(self, output: str) -> float:
        """Return the relative L2 that is the whole budget of an output, on the samples of this runner."""
        limit = self._budget.limits(output).relative_l2 or DEFAULT_SCALE
        own, typical = self._mean_squares[output], (self._typical or self._mean_squares)[output]
        return limit * math.sqrt(typical / own) if own > 0 and typical > 0 else limit

    @functools.cached_property
    def _mean_squares(self) -> dict[str, float]:
        """By output, the mean square of its elements in FP32."""
        sizes = self._sizes
        counts = {name: sum(reference[name].size for reference in self.references) for name in self.references[0]}
        return {name: sum(size[name] for size in sizes) / max(count, 1) for name, count in counts.items()}

    def load(self, comparison: Comparison) -> float:
        """Return the share of the budget that the worst output uses; infinite if a value is finite in FP32 alone.

        The most used limit counts. The top-1 share is not a size and is left out; changed boxes, choices and steps are
        not sizes either, and count only beyond their limits.
        """
        return max((self._used(diff) for diff in comparison.outputs), default=0.0)

    def _used(self, diff: TensorDiff) -> float:
        used = [diff.relative_l2 / self.scale(diff.output)]
        if diff.limits.max_abs is not None:
            used.append(_ratio(diff.max_abs, diff.limits.max_abs))
        if diff.limits.cosine is not None:  # 1 - cosine grows with the square of the error
            used.append(math.sqrt(_ratio(max(0.0, 1 - diff.cosine), 1 - diff.limits.cosine)))
        for changed, limit in (
            (
                None if diff.agree is None else 1 - diff.agree,
                None if diff.limits.agree is None else 1 - diff.limits.agree,
            ),
            (diff.boxes, diff.limits.boxes),
            (diff.steps, diff.limits.steps),
        ):
            if changed is not None and limit is not None and changed > limit:
                used.append(_ratio(changed, limit))
        return max(used)

    def counts_changes(self, output: str) -> bool:
        """Return True if an output has limits on changed boxes or choices, or on steps of its integers."""
        detected = any(output in detector.outputs for detector in self._budget.detectors)
        limits = self._budget.limits(output)
        return detected or limits.agree is not None or limits.steps is not None

    def tensor_errors(self, half: AbstractSet[str], names: Sequence[str]) -> dict[str, TensorError] | None:
        """Return the errors of inner tensors with these nodes in half, the worst over the samples.

        A few tensors are read at a time. Returns None if a run fails.
        """
        self.trials += 1
        errors: dict[str, TensorError] = {}
        for index, sample in enumerate(self.feeds):
            for chunk in self._emulator.chunks(names):
                reference = self._inner.read(index, sample, chunk)
                try:
                    measured = self._emulator.read(half, sample, chunk)
                except InferenceError:
                    return None
                for name, array in reference.items():
                    errors[name] = worse_of(errors.get(name), tensor_error(array, measured[name]))
        return errors

    def read_reference(self, names: Sequence[str]) -> list[Feeds]:
        """Return inner FP32 tensors and inputs by name, for each set of samples."""
        sets: list[Feeds] = []
        for index, sample in enumerate(self.feeds):
            sets.append({name: sample[name] for name in names if name in sample})
            for chunk in self._emulator.chunks(names):
                sets[-1] |= self._inner.read(index, sample, chunk)
        return sets


class _InnerCache:
    """Cache of inner FP32 tensors, which every round needs; holds at most `CACHE_BYTES` of them."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._kept: dict[tuple[int, str], Array] = {}
        self._bytes = 0

    def read(self, index: int, sample: Feeds, names: Sequence[str]) -> Feeds:
        """Return the FP32 values of inner tensors for one set of samples, which `index` identifies."""
        if all((index, name) in self._kept for name in names):
            return {name: self._kept[index, name] for name in names}
        found = self._emulator.read(frozenset(), sample, names)
        for name, array in found.items():
            if (index, name) not in self._kept and self._bytes + array.nbytes <= CACHE_BYTES:
                self._kept[index, name] = array
                self._bytes += array.nbytes
        return found


def _right(answer: Feeds | InferenceError) -> Feeds:
    if isinstance(answer, InferenceError):
        raise answer
    return answer


def load_on_new_inputs(contributions: Sequence[Mapping[str, float]]) -> float:
    """Return the share of the budget that new inputs may use, from each set's contribution to the squared errors.

    Where the samples differ much, that is a 95% upper bound on the share used on them, or nearly the share that inputs
    like the hardest sample use: a request may hold nothing else.
    """
    outputs = [[share[name] for share in contributions] for name in contributions[0]] if contributions else []
    return max((max(upper_bound(squares), HARDEST * hardest_alone(squares)) for squares in outputs), default=0.0)


def _size(array: Array) -> float:
    """Return the squared L2 norm of the finite elements; for types other than float, the number of elements."""
    if array.dtype.kind != "f":
        return float(array.size)
    finite = array[np.isfinite(array)].astype(np.float64)
    return float(np.dot(finite, finite))


def _contribution(
    diff: TensorDiff, answer: Feeds, size: Mapping[str, float], total: Mapping[str, float], scale: float
) -> float:
    name, whole = diff.output, total[diff.output] or 1.0
    if math.isfinite(diff.relative_l2):
        return (diff.relative_l2 / scale) ** 2 * size[name] / whole
    is_nothing = not size[name] and not diff.non_finite and not diff.mismatched  # zeros have no relative error
    return _size(answer[name]) / whole / scale**2 if is_nothing else math.inf


def _ratio(error: float, limit: float) -> float:
    if limit > 0:
        return error / limit
    return math.inf if error else 0.0


def wrong_answer(array: Array) -> Array:
    """Return an output that is wrong in every element."""
    return np.full_like(array, np.nan) if array.dtype.kind == "f" else np.logical_not(array).astype(array.dtype)
