"""The runner: what a choice of half nodes costs, measured by the switchable emulator against FP32."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparison, TensorDiff, compare, relative_l2
from demi.calibration.emulation.confidence import upper_bound
from demi.calibration.emulation.switchable import Emulator
from demi.errors import InferenceError
from demi.tensors import Array, Feeds

DEFAULT_SCALE = 1e-2
"""Relative L2 by which an output's error is judged when its limits say nothing about relative L2."""


@dataclass(frozen=True, slots=True)
class TensorError:
    """How far one inner tensor is from FP32: relative L2 (infinite when only FP32 is finite), and the largest difference."""

    relative: float
    max_abs: float
    as_number: float | None = None
    """For integers: their relative L2 as the numbers they are."""


CACHE_BYTES = 256 << 20
"""Bytes of FP32 inner tensors that a runner keeps between rounds."""


NORMAL = 1e-10
"""A norm above which errors that float32 cannot square are below 1e-8 of it."""


_Trial = tuple[frozenset[str], frozenset[str], bool]
"""The half nodes, those that are held single, and `stores`: the same trial answers the same."""


class TrialRunner:
    """Measures plans on a few sets of samples. Owns nothing: the emulator's owner closes it; counts its runs."""

    def __init__(
        self,
        emulator: Emulator,
        feeds: Sequence[Feeds],
        budget: Budget,
        unsteady: Sequence[str] = (),
        known: Mapping[int, Feeds] | None = None,
    ) -> None:
        """`unsteady` outputs differ from run to run in FP32 itself: they count as right, whatever they are.

        `known` holds FP32's answers to sets of samples, by the identity of the set.
        """
        self._emulator = emulator
        self.feeds = list(feeds)
        self._budget = budget
        self._unsteady = tuple(unsteady)
        self.trials = 0
        known = known or {}
        self.references = [
            known[id(sample)] if id(sample) in known else emulator.run(frozenset(), sample) for sample in self.feeds
        ]
        self._known: dict[_Trial, Comparison] = {}
        self._added: dict[_Trial, list[dict[str, float]]] = {}
        """What each set of samples added to the squared error of each output."""
        self._inner = _Inner(emulator)

    def on(self, feeds: Sequence[Feeds]) -> TrialRunner:
        """A runner of the same model and budget on other sets of samples; InferenceError when they do not run.

        What FP32 answers to a set of this runner's is known.
        """
        known = {id(sample): answer for sample, answer in zip(self.feeds, self.references, strict=True)}
        return TrialRunner(self._emulator, feeds, self._budget, self._unsteady, known)

    def compare(self, half: AbstractSet[str], *, stores: bool = False) -> Comparison:
        """The outputs with these nodes in half, against FP32 and the budget.

        A run that fails (a wrong index out of bounds, say) answers with NaN: it is as wrong as can be.
        """
        key = (frozenset(half), self._emulator.held, stores)
        if key not in self._known:
            self.trials += 1
            measured = (self._answer(half, i, stores) for i in range(len(self.feeds)))
            self._known[key] = compare(self.references, measured, self._budget)
        return self._known[key]

    def verify(self, half: AbstractSet[str]) -> tuple[Comparison, float]:
        """The outputs with these nodes in half, and the share of the budget that new inputs may use.

        That is the share used on the samples, or a 95% upper bound on it where the samples differ much.
        """
        each = self._each(half)
        comparison = self.compare(half)
        bound = max((upper_bound([share[name] for share in each]) for name in each[0]), default=0.0) if each else 0.0
        return comparison, max(self.load(comparison), bound)

    def contributions(self, half: AbstractSet[str]) -> list[float]:
        """What each set of samples adds to the squared error of all, in units of the limits, with these nodes in half.

        An error is weighed by the size of what it spoils: a set of tiny answers adds little, however wrong they are.
        """
        return [sum(share.values()) for share in self._each(half)]

    def _each(self, half: AbstractSet[str]) -> list[dict[str, float]]:
        """By output, what each set of samples adds to the squared error; the outputs of the run are compared as well."""
        key = (frozenset(half), self._emulator.held, False)
        if key not in self._added:
            self.trials += 1
            answers = [self._answer(half, i, stores=False) for i in range(len(self.feeds))]
            self._known[key] = compare(self.references, answers, self._budget)
            self._added[key] = self._contributions(answers)
        return self._added[key]

    def _contributions(self, answers: Sequence[Feeds]) -> list[dict[str, float]]:
        sizes = self._sizes
        total = {name: sum(size[name] for size in sizes) for name in sizes[0]} if sizes else {}
        found = []
        for reference, answer, size in zip(self.references, answers, sizes, strict=True):
            diffs = compare([reference], [answer], self._budget).outputs
            found.append({d.output: _contribution(d, answer, size, total, self.scale(d.output)) for d in diffs})
        return found

    @functools.cached_property
    def _sizes(self) -> list[dict[str, float]]:
        """For each set of samples, the squared norms of what FP32 answers."""
        return [{name: _size(array) for name, array in reference.items()} for reference in self.references]

    def _answer(self, half: AbstractSet[str], index: int, stores: bool) -> Feeds:
        reference = self.references[index]
        try:
            answer = self._emulator.run(half, self.feeds[index], stores=stores)
        except InferenceError:
            answer = {name: wrong_answer(array) for name, array in reference.items()}
        return answer | {name: reference[name] for name in self._unsteady}

    def shares(self, half: AbstractSet[str], *, stores: bool = True) -> tuple[float, ...]:
        """For each output, the squared error of these nodes, in units of its squared limit.

        With `stores`, only what they store is rounded, and not what they read.
        """
        comparison = self.compare(half, stores=stores)
        return tuple((diff.relative_l2 / self.scale(diff.output)) ** 2 for diff in comparison.outputs)

    def scale(self, output: str) -> float:
        """The relative L2 that counts as the whole budget of an output."""
        limit = self._budget.limits(output).relative_l2
        return limit if limit else DEFAULT_SCALE

    def load(self, comparison: Comparison) -> float:
        """The share of the budget that is used by the worst output; infinite when a value is not finite or wrong.

        Of all limits but top1, which is no measure of size, the one that is used most counts. Boxes, choices and
        steps that change are none either, and count where more of them do than may.
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
        """Whether an output is judged by how many of its boxes or choices change, or how many steps its integers are off."""
        detected = any(output in detector.outputs for detector in self._budget.detectors)
        limits = self._budget.limits(output)
        return detected or limits.agree is not None or limits.steps is not None

    def tensor_errors(self, half: AbstractSet[str], names: Sequence[str]) -> dict[str, TensorError] | None:
        """The errors of inner tensors with these nodes in half, the worst over the samples, a few tensors at a time.

        None when a run fails: then no tensor of it can be read.
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
                    errors[name] = _worse(errors.get(name), tensor_error(array, measured[name]))
        return errors

    def read_reference(self, names: Sequence[str]) -> list[Feeds]:
        """Inner FP32 tensors and inputs, by name, for each set of samples."""
        sets: list[Feeds] = []
        for index, sample in enumerate(self.feeds):
            sets.append({name: sample[name] for name in names if name in sample})
            for chunk in self._emulator.chunks(names):
                sets[-1] |= self._inner.read(index, sample, chunk)
        return sets


class _Inner:
    """Cache of inner FP32 tensors: they are compared with in every round. Owns at most `CACHE_BYTES` of them."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._kept: dict[tuple[int, str], Array] = {}
        self._bytes = 0

    def read(self, index: int, sample: Feeds, names: Sequence[str]) -> Feeds:
        """The FP32 values of inner tensors for one set of samples, which `index` identifies."""
        if all((index, name) in self._kept for name in names):
            return {name: self._kept[index, name] for name in names}
        found = self._emulator.read(frozenset(), sample, names)
        for name, array in found.items():
            if (index, name) not in self._kept and self._bytes + array.nbytes <= CACHE_BYTES:
                self._kept[index, name] = array
                self._bytes += array.nbytes
        return found


def _size(array: Array) -> float:
    """The squared L2 norm of what is finite; the number of elements of another type than float."""
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
    is_nothing = not size[name] and not diff.non_finite and not diff.mismatched  # zeros, of which no share can be taken
    return _size(answer[name]) / whole / scale**2 if is_nothing else math.inf


def _ratio(error: float, limit: float) -> float:
    if limit > 0:
        return error / limit
    return math.inf if error else 0.0


def _worse(known: TensorError | None, new: TensorError) -> TensorError:
    if known is None:
        return new
    as_number = None if new.as_number is None else max(known.as_number or 0.0, new.as_number)
    return TensorError(max(known.relative, new.relative), max(known.max_abs, new.max_abs), as_number)


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
    with np.errstate(invalid="ignore"):  # infinity beside infinity
        gap = np.subtract(reference, measured)
    error, size = float(np.linalg.norm(gap)), float(np.linalg.norm(reference))
    if math.isfinite(error) and math.isfinite(size) and size > NORMAL:  # float32 squares neither overflow nor vanish
        return TensorError(error / size, float(np.abs(gap).max(initial=0.0)))
    finite = np.isfinite(reference) & np.isfinite(measured)
    largest = np.abs(gap, where=finite, out=np.zeros_like(reference)).max(initial=0.0)
    return TensorError(relative_l2(reference, measured), float(largest))
