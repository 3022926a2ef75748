"""A bundle beside its baseline: the measures that both hold, and the plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from calibration.gate.baseline import Baseline, plan_of, rows_of
from calibration.gate.bootstrap import Interval, paired_interval
from calibration.gate.evaluation import Evaluation
from calibration.gate.gates import Compared, Worsening
from calibration.gate.measure import Measure
from calibration.gate.plans import compare_plans
from demi import manifest as manifests
from demi.bundle import Bundle
from demi.errors import BundleError, InputError, SampleError
from demi.manifest import Manifest
from demi.plan import PrecisionPlan, read_plan
from demi.tensors import Array


def measures_of(bundle: Bundle, evaluation: Evaluation) -> tuple[Measure, ...]:
    """What a baseline holds of a bundle: errors, the task metric, its size and its share in FP32."""
    files = bundle.manifest.files
    size = sum(entry.bytes for name, entry in files.items() if name.startswith(manifests.MODEL))
    task = (evaluation.task.half,) if evaluation.task else ()
    shares = [Measure(f"fp32_{name}", share) for name, share in _fp32_shares(bundle).items()]
    return (*evaluation.errors, *task, Measure("model_bytes", float(size)), *shares)


def plan_of_bundle(bundle: Bundle) -> PrecisionPlan | None:
    """The plan that the bundle was made by, when it holds one."""
    return read_plan(bundle.path / manifests.PLAN) if manifests.PLAN in bundle.manifest.files else None


def compare_with_baseline(
    manifest: Manifest,
    measures: Sequence[Measure],
    plan: PrecisionPlan | None,
    evaluation: Evaluation,
    baseline: Baseline,
    seed: int,
) -> Compared:
    """Every measure beside the baseline's, in pairs, and the plan beside the baseline's plan.

    Raises InputError when the baseline is of another model or precision, of other samples, or holds what is not measured.
    """
    entry = baseline.entry(manifest.name, manifest.precision)
    if entry.digest != evaluation.digest:
        raise SampleError(
            f"the baseline of `{manifest.name}` was measured on other samples: {entry.origin}, {entry.samples:,} of them",
            where=str(baseline.path),
            hint="check on the same --data and --labels, or write a new one with --write-baseline",
        )
    now = {measure.key: measure for measure in measures}
    if missing := [each for each in entry.measures if each.key not in now]:
        raise InputError(
            f"the baseline holds {missing[0].name}, which is not measured now",
            where=str(baseline.path),
            hint=f"check with --metric {missing[0].name}, or write a new baseline with --write-baseline",
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


def _fp32_shares(bundle: Bundle) -> dict[str, float]:
    """How much of the work and of the tensors stays in FP32, as the export said."""
    if manifests.ACCURACY not in bundle.manifest.files:
        return {}
    try:
        document: Any = msgspec.json.decode((bundle.path / manifests.ACCURACY).read_bytes())
        shares = msgspec.convert(document.get("fp32_share", {}), dict[str, float | None])
    except (msgspec.MsgspecError, AttributeError) as error:
        raise BundleError(
            f"`{manifests.ACCURACY}` cannot be read: {error}", where=str(bundle.path), hint="export the model again"
        ) from error
    return {name: share for name, share in shares.items() if share is not None}
