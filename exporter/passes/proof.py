"""Proof of a rewritten graph: it is kept only if its outputs on the samples are unchanged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import onnx_ir as ir

from demi.accuracy.compare import relative_l2
from demi.calibration.sessions import session_for
from demi.errors import DemiError
from demi.exporter.passes.prepare import prepare
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds

logger = logging.getLogger(__name__)

SAME = 1e-5
"""Relative L2 within which a rewritten FP32 model computes the same: other orders of summation, nothing else."""


def proven(
    what: str,
    prepared: ir.Model,
    rewrite: Callable[[ir.Model], ir.Model],
    feeds: Sequence[Feeds],
    references: Sequence[Feeds],
) -> ir.Model:
    """Return the rewritten and prepared copy of `prepared`, or `prepared` itself when outputs would differ.

    Before: `prepared` went through `prepare`, and `references` are its outputs for `feeds`. After: the result is
    prepared, too; its outputs on `feeds` agree within `SAME`, and its public names and types are unchanged. The reason
    for dropping a rewriting is logged, with `what` in front.
    """
    try:
        candidate = prepare(rewrite(prepared.clone()))
        error = difference(candidate, feeds, references)
    except (DemiError, ValueError, RuntimeError, AssertionError, TypeError, KeyError, AttributeError) as problem:
        logger.info("%s dropped: %s", what, problem)
        return prepared
    if not error <= SAME:
        logger.info("%s dropped: outputs differ by %.2g relative L2", what, error)
        return prepared
    return candidate


def difference(candidate: ir.Model, feeds: Sequence[Feeds], references: Sequence[Feeds]) -> float:
    """Return the largest relative L2 of an output over the samples."""
    with session_for(candidate, settings=FAITHFUL) as session:
        return max(
            (
                relative_l2(want, got[name])
                for sample, reference in zip(feeds, references, strict=False)
                for got in [session.run(sample)]
                for name, want in reference.items()
            ),
            default=0.0,
        )
