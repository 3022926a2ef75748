"""`demi check`: a bundle against its golden outputs, its FP32 reference and its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from calibration.emulate import widen
from calibration.sessions import session_for
from demi.budget import Budget
from demi.bundle import Bundle, open_bundle
from demi.compare import Comparison, compare, relative_l2
from demi.errors import BundleError, DemiError
from demi.runtime.ort import SessionSettings, open_session
from demi.tensors import Array, Feeds, TensorSpec, check_feeds

REFERENCE_TOLERANCE = 1e-3
"""Relative L2 allowed between the FP32 reference here and the golden outputs: other machines sum in other orders."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of checking one bundle; truthy when it passed."""

    bundle: str
    name: str
    version: int
    precision: str
    comparison: Comparison
    reference_error: float | None
    """Relative L2 of the FP32 reference against the golden outputs; None without a reference."""
    failures: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.failures


def check_bundle(path: Path, budget: Budget | None = None) -> Check:
    """Run the golden inputs through the emulated half model and the FP32 reference, and judge both.

    `budget` replaces the bundle's own. Raises BundleError (DigestError for a damaged file) when it cannot be read.
    """
    bundle = open_bundle(path)
    budget = budget or bundle.manifest.budget
    budget.check_names(spec.name for spec in bundle.manifest.outputs)
    golden = bundle.golden()
    names = {spec.name for spec in bundle.manifest.outputs}
    if not golden.inputs or any(set(feeds) != names for feeds in golden.outputs):
        raise BundleError(
            "the golden inputs and outputs are not those of this model",
            where=str(bundle.path),
            hint="export the model again",
        )
    comparison = compare(golden.outputs, emulate(bundle, golden.inputs), budget)
    reference_error = _reference_error(bundle, golden.inputs, golden.outputs)
    failures = comparison.failures()
    if reference_error is not None and not reference_error <= REFERENCE_TOLERANCE:
        failures.append(
            f"the FP32 reference differs from the golden outputs by {reference_error:.3g} relative L2 (at most {REFERENCE_TOLERANCE:g})"
        )
    return Check(
        bundle=str(bundle.path),
        name=bundle.manifest.name,
        version=bundle.manifest.version,
        precision=bundle.manifest.precision,
        comparison=comparison,
        reference_error=reference_error,
        failures=tuple(failures),
    )


def emulate(bundle: Bundle, inputs: Sequence[Feeds]) -> list[Feeds]:
    """The outputs of the bundle's half model with every half rounding made explicit."""
    try:
        model = ir.load(bundle.model_path)
    except Exception as error:
        raise BundleError(
            f"`{bundle.model_path.name}` cannot be read: {error}", where=str(bundle.path), hint="export the model again"
        ) from error
    with session_for(widen(model), settings=SessionSettings(faithful=True)) as session:
        return [session.run(_fit(session.inputs, feeds, bundle)) for feeds in inputs]


def _reference_error(bundle: Bundle, inputs: Sequence[Feeds], expected: Sequence[Feeds]) -> float | None:
    if bundle.reference_path is None:
        return None
    session = open_session(bundle.reference_path, settings=SessionSettings(faithful=True))
    errors = [
        relative_l2(want, got[name])
        for feeds, outputs in zip(inputs, expected, strict=True)
        for got in [session.run(_fit(session.inputs, feeds, bundle))]
        for name, want in outputs.items()
    ]
    return max(errors)


def _fit(specs: Sequence[TensorSpec], feeds: Feeds, bundle: Bundle) -> Feeds:
    # Half inputs are stored as half; the reference takes them in FP32.
    widened: dict[str, Array] = dict(feeds)
    try:
        return check_feeds([replace(spec) for spec in specs], widened, cast_floats=True)
    except DemiError as error:
        raise BundleError(
            f"the golden inputs do not fit the model: {error.message}",
            where=str(bundle.path),
            hint="export the model again",
        ) from error
