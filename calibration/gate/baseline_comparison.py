"""Comparison of a bundle with its entry in a baseline: every measure, in pairs of samples, and the precision plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle
from demi.bundles.manifest import Manifest
from demi.calibration.gate.baseline import Baseline, StoredMeasure, decode_plan
from demi.calibration.gate.bootstrap import Interval, paired_interval
from demi.calibration.gate.evaluation import Evaluation
from demi.calibration.gate.measure import Measure
from demi.errors import InputError, SampleError
from demi.plan import PrecisionPlan
from demi.plan_changes import NodeChange, compare_plans
from demi.tensors import Array


@dataclass(frozen=True, slots=True)
class MeasureChange:
    """One measure now and in the baseline; falsy when it is worse, with confidence, by more than its tolerance."""

    now: Measure
    was: StoredMeasure
    interval: Interval | None
    """Confidence interval of `worse_by`; None for a measure without rows, which is compared by its value alone."""

    @property
    def worse_by(self) -> float:
        """Return how much worse the value is; negative when it is better."""
        return self.now.worse_than(self.was.value)

    def __bool__(self) -> bool:
        surely = self.interval.low if self.interval else self.worse_by
        return surely <= self.was.allowed  # False for NaN


@dataclass(frozen=True, slots=True)
class BaselineComparison:
    """One bundle beside its entry in a baseline."""

    measures: tuple[MeasureChange, ...]
    new: tuple[Measure, ...]
    """Measures that the baseline does not hold."""
    changes: tuple[NodeChange, ...]
    """Nodes whose precision or reason differs from the baseline's plan."""


def compare_with_baseline(
    manifest: Manifest,
    measures: Sequence[Measure],
    plan: PrecisionPlan | None,
    evaluation: Evaluation,
    baseline: Baseline,
    seed: int,
    device: str = "cpu",
) -> BaselineComparison:
    """Compare every measure, in pairs of samples, and the plan with the baseline's.

    Raises InputError when the baseline lacks the model, was made with another precision or device, or holds a measure
    that is not taken now, and SampleError when it was measured on other samples.
    """
    entry = baseline.entry(manifest.name, manifest.precision, device)
    if entry.digest != evaluation.digest:
        raise SampleError(
            f"the baseline of `{manifest.name}` was measured on other samples: {entry.samples:,} from {entry.origin}",
            where=str(baseline.path),
            hint="check on the same --data and --labels, or write a new baseline with --write-baseline",
        )
    now = {measure.key: measure for measure in measures}
    if missing := [each for each in entry.measures if each.key not in now]:
        raise InputError(
            f"the baseline holds {missing[0].label}, which is not measured now",
            where=str(baseline.path),
            hint="give the --metric that it was written with, or write a new baseline with --write-baseline",
        )
    known = {each.key for each in entry.measures}
    pairs = tuple(
        MeasureChange(now[was.key], was, _interval(now[was.key], was.row_array(), seed)) for was in entry.measures
    )
    changes = compare_plans(decode_plan(entry, baseline.path), plan) if plan else ()
    return BaselineComparison(pairs, tuple(m for m in measures if m.key not in known), changes)


def baseline_measures(bundle: Bundle, plan: PrecisionPlan | None, evaluation: Evaluation) -> tuple[Measure, ...]:
    """Return what a baseline holds of a bundle: errors, the task metric, model size and the share of nodes in FP32."""
    task = (evaluation.task.half,) if evaluation.task else ()
    single = (Measure("fp32_nodes", 1 - plan.half_nodes / len(plan.computing)),) if plan and plan.computing else ()
    return (*evaluation.errors, *task, Measure("model_bytes", model_bytes(bundle)), *single)


def model_bytes(bundle: Bundle) -> float:
    """Return the size of the half model in bytes, its external weights included."""
    return float(sum(file.bytes for name, file in bundle.manifest.files.items() if name.startswith(manifests.MODEL)))


def _interval(now: Measure, was: Array, seed: int) -> Interval | None:
    """Return the confidence interval of how much worse a measure is; None when there are no rows to resample."""
    if now.rows is None or now.formula is None or now.rows.shape != was.shape:
        return None
    worse, better = (was, now.rows) if now.higher_is_better else (now.rows, was)
    return paired_interval(worse, better, now.formula, seed)
