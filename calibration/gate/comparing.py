"""A bundle beside its baseline: the measures that both hold, and the plans."""

from __future__ import annotations

from collections.abc import Sequence

from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle
from demi.bundles.manifest import Manifest
from demi.calibration.gate.baseline import Baseline, plan_of, rows_of
from demi.calibration.gate.bootstrap import Interval, paired_interval
from demi.calibration.gate.evaluation import Evaluation
from demi.calibration.gate.gates import Compared, Worsening
from demi.calibration.gate.measure import Measure
from demi.calibration.gate.plans import compare_plans
from demi.errors import InputError, SampleError
from demi.plan import PrecisionPlan
from demi.tensors import Array


def measures_of(bundle: Bundle, plan: PrecisionPlan | None, evaluation: Evaluation) -> tuple[Measure, ...]:
    """What a baseline holds of a bundle: errors, the task metric, its size and the share of its nodes in FP32."""
    task = (evaluation.task.half,) if evaluation.task else ()
    single = (Measure("fp32_nodes", 1 - plan.half_nodes / len(plan.computing)),) if plan and plan.computing else ()
    return (*evaluation.errors, *task, Measure("model_bytes", model_bytes(bundle)), *single)


def model_bytes(bundle: Bundle) -> float:
    """Bytes of the half model, with the weights that lie beside it."""
    return float(sum(file.bytes for name, file in bundle.manifest.files.items() if name.startswith(manifests.MODEL)))


def compare_with_baseline(
    manifest: Manifest,
    measures: Sequence[Measure],
    plan: PrecisionPlan | None,
    evaluation: Evaluation,
    baseline: Baseline,
    seed: int,
    device: str = "cpu",
) -> Compared:
    """Every measure beside the baseline's, in pairs, and the plan beside the baseline's plan.

    Raises InputError when the baseline is of another model, precision, device or samples, or holds what is not measured.
    """
    entry = baseline.entry(manifest.name, manifest.precision, device)
    if entry.digest != evaluation.digest:
        raise SampleError(
            f"the baseline of `{manifest.name}` was measured on other samples: {entry.origin}, {entry.samples:,} of them",
            where=str(baseline.path),
            hint="check on the same --data and --labels, or write a new one with --write-baseline",
        )
    now = {measure.key: measure for measure in measures}
    if missing := [each for each in entry.measures if each.key not in now]:
        raise InputError(
            f"the baseline holds {missing[0].label}, which is not measured now",
            where=str(baseline.path),
            hint="give the --metric it was written with, or write a new one with --write-baseline",
        )
    known = {each.key for each in entry.measures}
    worsenings = tuple(
        Worsening(now[was.key], was, _interval(now[was.key], rows_of(was), seed)) for was in entry.measures
    )
    changes = compare_plans(plan_of(entry, baseline.path), plan) if plan else ()
    return Compared(worsenings, tuple(m for m in measures if m.key not in known), changes)


def _interval(now: Measure, was: Array, seed: int) -> Interval | None:
    """How much worse a measure is, as an interval; None when no rows stand behind it."""
    if now.rows is None or now.formula is None or now.rows.shape != was.shape:
        return None
    worse, better = (was, now.rows) if now.higher_is_better else (now.rows, was)
    return paired_interval(worse, better, now.formula, seed)
