"""`demi diff`: compare two bundles or two plans, node by node, and their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from demi.bundles.bundle import Bundle, open_bundle
from demi.calibration.gate.baseline_comparison import model_bytes
from demi.calibration.gate.bundle_evaluation import evaluate_data, evaluate_golden
from demi.calibration.gate.bundle_sessions import half_session, reference_session
from demi.calibration.gate.data import Data
from demi.calibration.gate.evaluation import Evaluation
from demi.calibration.gate.text_evaluation import evaluate_prompts, text_models, with_recorded_texts
from demi.errors import BundleError, InputError
from demi.plan import PrecisionPlan, read_plan
from demi.plan_changes import NodeChange, compare_plans


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: its plan, and for a bundle its evaluation."""

    path: str
    plan: PrecisionPlan
    evaluation: Evaluation | None
    """Half against FP32, on the golden sets or the data; None for a plan file, and for a bundle that was never run."""
    model_bytes: float | None
    """None for a plan file."""

    @property
    def half_nodes(self) -> int:
        """Return the number of nodes that compute in half."""
        return self.plan.half_nodes

    @property
    def single_nodes(self) -> int:
        """Return the number of nodes that stay in FP32."""
        return len(self.plan.computing) - self.plan.half_nodes

    @property
    def predicted(self) -> float | None:
        """Return the error that the sensitivities add up to, as a share of the budget; None when none was measured."""
        known = [
            each.sensitivity for each in self.plan.decisions.values() if each.is_half and each.sensitivity is not None
        ]
        return math.sqrt(sum(sensitivity**2 for sensitivity in known)) if known else None


@dataclass(frozen=True, slots=True)
class Diff:
    """Two sides, and every node whose decision differs."""

    a: Side
    b: Side
    changes: tuple[NodeChange, ...]

    @property
    def same_samples(self) -> bool:
        """Return whether both sides were measured on the same samples."""
        a, b = self.a.evaluation, self.b.evaluation
        return a is not None and b is not None and a.digest == b.digest


def diff(a: Path, b: Path, data: Data | None = None) -> Diff:
    """Compare two bundles or plan files. Errors of bundles are measured anew, on the golden sets or on `data`.

    Raises BundleError or InputError when one cannot be read or holds no plan.
    """
    if data is not None and a.is_file() and b.is_file():
        raise InputError(
            "plan files cannot be run on data", hint="name the bundles that hold them, or leave out --data"
        )
    first, second = read_side(a, data), read_side(b, data)
    return Diff(first, second, compare_plans(first.plan, second.plan))


def read_side(path: Path, data: Data | None) -> Side:
    """Read a plan file, or open a bundle and run it under the emulator."""
    if path.is_file():
        return Side(str(path), read_plan(path), None, None)
    bundle = open_bundle(path)
    plan = bundle.plan()
    if plan is None:
        raise BundleError("the bundle holds no plan to compare", where=str(bundle.path), hint="export the model again")
    evaluation = _evaluate(bundle, data)
    return Side(str(bundle.path), plan, evaluation, model_bytes(bundle))


def _evaluate(bundle: Bundle, data: Data | None) -> Evaluation | None:
    if data is not None:
        bundle.require_proof()
    if not bundle.manifest.proven:
        return None
    budget = bundle.manifest.budget
    with (
        half_session(bundle) as half,
        reference_session(bundle) as reference,
        text_models(bundle, half, reference) as models,
    ):
        if data is not None and data.raw and models:
            return evaluate_prompts(models, data)
        if data is not None:
            return evaluate_data(bundle, half, reference, budget, data)
        golden = evaluate_golden(bundle, half, reference, budget)[0]
        return with_recorded_texts(golden, models) if models else golden
