"""Golden sets of a bundle, checked and fitted to a session's inputs."""

from __future__ import annotations

from demi.bundles.bundle import Bundle, Golden
from demi.calibration.gate.data import rows_of_a_run
from demi.errors import BundleError, DemiError
from demi.runtime.base import Session
from demi.tensors import Feeds, check_feeds


def read_golden(bundle: Bundle) -> Golden:
    """Return the golden sets. Raises BundleError when they do not belong to this model."""
    golden = bundle.golden()
    names = {spec.name for spec in bundle.manifest.outputs}
    if not golden.inputs or any(set(feeds) != names for feeds in golden.outputs):
        raise BundleError(
            "the golden inputs and outputs do not belong to this model",
            where=str(bundle.path),
            hint="export the model again",
        )
    return golden


def fit_golden(session: Session, feeds: Feeds, bundle: Bundle) -> Feeds:
    """Return golden inputs in the session's dtypes: half inputs are stored as half, and the reference takes FP32.

    Raises BundleError for inputs that do not fit.
    """
    try:
        return check_feeds(session.inputs, feeds, cast_floats=True)
    except DemiError as error:
        raise BundleError(
            f"the golden inputs do not fit the model: {error.message}",
            where=str(bundle.path),
            hint="export the model again",
        ) from error


def sample_count(bundle: Bundle, feeds: Feeds) -> int:
    """Return how many samples a golden set holds: its rows, or 1 where the first axis is not a batch."""
    if rows_of_a_run(bundle.manifest) is None or not bundle.manifest.inputs:
        return 1
    array = feeds.get(bundle.manifest.inputs[0].name)
    return array.shape[0] if array is not None and array.ndim else 1
