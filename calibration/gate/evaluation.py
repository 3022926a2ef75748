"""Evaluation of both models on the same samples: comparison, per-sample errors and the task metric.

Outputs are processed batch by batch and not kept, except for a metric that needs all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparer, Comparison
from demi.accuracy.detector import Detector
from demi.accuracy.matching import Matching
from demi.accuracy.token_agreement import TokenAgreement
from demi.calibration.gate.bootstrap import SEED, Interval, paired_interval
from demi.calibration.gate.detections import box_rows, matched_error_rows
from demi.calibration.gate.measure import Measure, measure_of
from demi.calibration.gate.metrics import Metric
from demi.errors import InputError, SampleError
from demi.tensors import Array, Feeds


@dataclass(frozen=True, slots=True)
class Run:
    """One run of both models: their outputs, the number of samples, and the labels."""

    reference: Feeds
    half: Feeds
    samples: int
    labels: Array | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A task metric of both models on the same samples."""

    fp32: Measure
    half: Measure
    interval: Interval | None
    """Confidence interval of the loss; None for a metric that returns one number for all samples."""

    @property
    def loss(self) -> float:
        """Return how much worse half is than FP32; negative when it is better, NaN when half has no score."""
        return self.half.worse_than(self.fp32.value)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measures taken on one collection of samples."""

    origin: str
    samples: int
    digest: str
    """SHA-256 of the inputs and labels: a baseline is compared on the same samples only."""
    comparison: Comparison
    errors: tuple[Measure, ...]
    """Relative L2 of each float output; with limits for them, shares of changed boxes and of equal integers; the share
    of tokens that stay the same."""
    task: Task | None = None
    tokens: TokenAgreement | None = None
    """The tokens that half generates beside FP32's; None where no texts were generated."""


def evaluate(
    runs: Iterable[Run],
    budget: Budget,
    origin: str,
    digest: str,
    metric: Metric | None = None,
    seed: int = SEED,
    comparable: Callable[[Feeds], Feeds] = lambda outputs: outputs,
) -> Evaluation:
    """Return the comparison, the errors by sample and the task metric of all runs.

    `comparable` selects the outputs that can be compared value by value. Raises InputError for a metric that fails.
    """
    comparer, samples = Comparer(budget), 0
    errors = _Errors(budget)
    scores = _Scores(metric) if metric else None
    for run in runs:
        reference = comparable(run.reference)
        errors.add(reference, run, comparer.add(reference, run.half))
        samples += run.samples
        if scores:
            scores.add(run)
    return Evaluation(
        origin=origin,
        samples=samples,
        digest=digest,
        comparison=comparer.result(),
        errors=errors.measures(),
        task=scores.task(seed) if scores else None,
    )


@dataclass(slots=True)
class _Errors:
    """Collects the per-sample rows of the error measures."""

    budget: Budget
    rows: dict[tuple[str, str], list[Array]] = field(default_factory=dict)
    """Rows by measure and output."""

    def add(self, reference: Feeds, run: Run, matched: Mapping[Detector, Matching]) -> None:
        by_rows = {name: found for detector, found in matched.items() for name in detector.rows}
        counts = {detector.count for detector in matched}
        for name, want in reference.items():
            got = run.half[name]
            if want.dtype.kind != "f":
                if self.budget.limits(name).agree is not None and name not in by_rows:
                    self._note("agree", name, agreement_rows(want, got, run.samples))
            elif name in by_rows:
                self._note("relative_l2", name, matched_error_rows(want, got, by_rows[name], run.samples))
            elif name not in counts:
                self._note("relative_l2", name, error_rows(want, got, run.samples))
        for detector, found in matched.items():
            self._note("boxes", detector.boxes, box_rows(found, run.samples))

    def _note(self, measure: str, output: str, rows: Array) -> None:
        self.rows.setdefault((measure, output), []).append(rows)

    def measures(self) -> tuple[Measure, ...]:
        """Return one measure of each kind and output; those with nothing to divide by are left out."""
        found = []
        for (name, output), parts in self.rows.items():
            formula = "root_ratio" if name == "relative_l2" else "ratio"
            measure = measure_of(name, formula, np.concatenate(parts), higher_is_better=name == "agree", output=output)
            found += [] if math.isnan(measure.value) else [measure]
        return tuple(found)


def agreement_rows(want: Array, got: Array, samples: int) -> Array:
    """Return `[samples, 2]`: how many elements of each sample are equal, and how many there are."""
    if want.shape != got.shape:
        return np.tile([0.0, 1.0], (samples, 1))
    width = want.size // max(samples, 1)
    same = (want == got).reshape(samples, width)
    return np.stack([same.sum(axis=1), np.full(samples, width)], axis=1).astype(np.float64)


def error_rows(want: Array, got: Array, samples: int) -> Array:
    """Return float64 `[samples, 2]`: squared error and squared signal; an error where only one side is finite is infinite."""
    if want.shape != got.shape:
        return np.tile([math.inf, 0.0], (samples, 1))
    width = want.size // max(samples, 1)  # 0 samples must not divide by zero
    reference, measured = (array.astype(np.float64).reshape(samples, width) for array in (want, got))
    same = (reference == measured) | (np.isnan(reference) & np.isnan(measured))
    finite = np.isfinite(reference) & np.isfinite(measured)
    error = np.where(
        same,
        0.0,
        np.where(finite, np.subtract(measured, reference, where=finite, out=np.zeros_like(reference)), np.inf),
    )
    signal = np.where(finite, reference, 0.0)
    return np.stack([np.sum(error * error, axis=1), np.sum(signal * signal, axis=1)], axis=1)


@dataclass(slots=True)
class _Scores:
    """Collects a metric's rows for both models; for a metric that needs all samples at once, the outputs themselves."""

    metric: Metric
    fp32: list[Array] = field(default_factory=list)
    half: list[Array] = field(default_factory=list)
    kept: list[Run] = field(default_factory=list)

    def add(self, run: Run) -> None:
        if self.metric.whole:
            self.kept.append(run)
            return
        self.fp32.append(self.metric.rows(run.reference, run.labels))
        self.half.append(self.metric.rows(run.half, run.labels))

    def task(self, seed: int) -> Task:
        if self.metric.whole:
            labels = _join([run.labels for run in self.kept if run.labels is not None], "the labels")
            self.fp32.append(self.metric.rows(_join_feeds([run.reference for run in self.kept]), labels))
            self.half.append(self.metric.rows(_join_feeds([run.half for run in self.kept]), labels))
        fp32, half = self._measure(self.fp32), self._measure(self.half)
        if not math.isfinite(fp32.value):
            raise InputError(
                f"the metric `{self.metric.name}` is {'NaN' if math.isnan(fp32.value) else 'infinite'} for FP32",
                where="--metric",
                hint="check that some labels count (negative ones are ignored)",
            )
        if fp32.rows is None or half.rows is None or fp32.formula is None:
            return Task(fp32, half, None)
        worse, better = (fp32.rows, half.rows) if fp32.higher_is_better else (half.rows, fp32.rows)
        return Task(fp32, half, paired_interval(worse, better, fp32.formula, seed))

    def _measure(self, rows: Sequence[Array]) -> Measure:
        higher, output = self.metric.higher_is_better, self.metric.output
        if rows[0].ndim == 0:
            return Measure(self.metric.name, float(rows[0]), higher_is_better=higher, output=output)
        joined = np.concatenate(rows)
        return measure_of(self.metric.name, self.metric.formula, joined, higher_is_better=higher, output=output)


def _join_feeds(outputs: Sequence[Feeds]) -> Feeds:
    joined = {name: _join([feeds[name] for feeds in outputs], f"output `{name}`") for name in outputs[0]}
    return {name: array for name, array in joined.items() if array is not None}


def _join(arrays: Sequence[Array], name: str) -> Array | None:
    if not arrays:
        return None
    try:
        return np.concatenate(arrays)
    except ValueError as error:
        raise SampleError(
            f"{name} differs in shape from set to set, but this metric needs all sets at once",
            where="--data",
            hint="give samples of one shape, or use a metric that scores each sample",
        ) from error
