"""Evaluation of a bundle: its half model beside FP32, on the golden sets and on the user's data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from demi.accuracy.budget import Budget
from demi.accuracy.compare import TensorDiff, compare
from demi.bundles.bundle import Bundle, Golden
from demi.calibration.gate.bootstrap import SEED
from demi.calibration.gate.bundle_sessions import run_half
from demi.calibration.gate.data import Data, batches, digest_of
from demi.calibration.gate.evaluation import Evaluation, Run, evaluate
from demi.calibration.gate.golden_sets import fit_golden, read_golden, sample_count
from demi.calibration.gate.metrics import Metric
from demi.calibration.gate.raw_evaluation import for_bundle
from demi.errors import InputError
from demi.runtime.base import Session
from demi.runtime.openvino.session import OvSession
from demi.tensors import Feeds, check_feeds


def evaluate_golden(
    bundle: Bundle, half: Session, reference: Session | None, budget: Budget
) -> tuple[Evaluation, float | None]:
    """Evaluate the half model on the golden sets, and return the drift of the FP32 reference beside it.

    The drift is the largest relative L2 of an output of `reference` against the golden outputs; None without one.
    Raises BundleError for golden sets that do not fit the model, and InferenceError when a model fails on them.
    """
    golden = read_golden(bundle)
    runs = [
        Run(want, run_half(half, fit_golden(half, feeds, bundle)), sample_count(bundle, feeds))
        for feeds, want in zip(golden.inputs, golden.outputs, strict=True)
    ]
    comparable = _comparable(bundle, half)
    evaluation = evaluate(runs, budget, "the golden sets", digest_of(golden.inputs), comparable=comparable)
    return evaluation, None if reference is None else _drift(bundle, golden, reference, budget)


def evaluate_data(
    bundle: Bundle,
    half: Session,
    reference: Session | None,
    budget: Budget,
    data: Data,
    metric: Metric | None = None,
    seed: int = SEED,
) -> Evaluation:
    """Run the user's data through both models, batch by batch, and return errors and task metric.

    Raises InputError for a bundle without a reference, and for data or a metric that do not fit.
    """
    if reference is None:
        raise InputError(
            "the bundle holds no FP32 reference to evaluate beside",
            where=str(bundle.path),
            hint="export it without --no-reference, or check it without --data",
        )
    data = for_bundle(data, bundle)

    def runs(reference: Session) -> Iterator[Run]:
        for batch in batches(data, bundle.manifest, reference.inputs):
            answers = run_half(half, check_feeds(half.inputs, batch.feeds, cast_floats=True))
            yield Run(reference.run(batch.feeds), answers, batch.samples, batch.labels)

    digest = digest_of(data.sets, data.labels)
    return evaluate(runs(reference), budget, data.origin, digest, metric, seed, _comparable(bundle, half))


def _comparable(bundle: Bundle, half: Session) -> Callable[[Feeds], Feeds]:
    """Return the filter for outputs that can be compared: a device draws its own random numbers, the emulator FP32's."""
    is_live = half.device.kind != "cpu" or isinstance(half, OvSession)
    return functools.partial(bundle.manifest.varying.comparable, live=is_live)


def _drift(bundle: Bundle, golden: Golden, reference: Session, budget: Budget) -> float:
    """Return the largest error of the reference, run here, against the golden outputs."""
    kept = [bundle.manifest.varying.comparable(outputs) for outputs in golden.outputs]
    answers = [reference.run(fit_golden(reference, feeds, bundle)) for feeds in golden.inputs]
    return max((_output_drift(diff) for diff in compare(kept, answers, budget).outputs), default=0.0)


def _output_drift(diff: TensorDiff) -> float:
    """Return the error of one output; boxes or choices that change within their limits do not count."""
    if not any(reason.startswith(("boxes", "agree")) for reason in diff.exceeded):
        return diff.relative_l2
    return max(diff.relative_l2, diff.boxes or 0.0, 1.0 - (1.0 if diff.agree is None else diff.agree))
