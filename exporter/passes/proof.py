"""Proof of a rewritten graph: it is kept only if its outputs on the samples are unchanged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from demi.accuracy.budget import Budget
from demi.accuracy.compare import relative_l2
from demi.calibration.sessions import session_for
from demi.errors import DemiError
from demi.exporter.passes.prepare import prepare
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds

logger = logging.getLogger(__name__)

SAME = 1e-5
"""Relative L2 within which a rewritten FP32 model computes the same: other orders of summation, nothing else."""

SHARE_OF_BUDGET = 0.005
"""Share of a budget that may be added to it: weights that are multiplied are rounded anew, which some models magnify."""


def same_within(budget: Budget, outputs: Iterable[str]) -> float:
    """Return the relative L2 within which a rewritten model computes the same, for the tightest budget of the outputs."""
    limits = [limit for name in outputs if (limit := budget.limits(name).relative_l2) is not None]
    return max(SAME, SHARE_OF_BUDGET * min(limits, default=0.0))


def proven(
    what: str,
    prepared: ir.Model,
    rewrite: Callable[[ir.Model], ir.Model | None],
    feeds: Sequence[Feeds],
    references: Sequence[Feeds],
    same: float = SAME,
) -> ir.Model:
    """Return the rewritten and prepared copy of `prepared`, or `prepared` itself when outputs would differ.

    Before: `prepared` went through `prepare`, and `references` are its outputs for `feeds`; `rewrite` changes a copy of it
    and returns None if it found nothing. After: the result is prepared, too; its outputs on `feeds` agree within `same`, a
    relative L2, and its public names and types are unchanged. The reason for dropping a rewriting is logged, with `what`
    in front.
    """
    try:
        rewritten = rewrite(prepared.clone())
        if rewritten is None:
            return prepared
        candidate = prepare(rewritten)
        error = difference(candidate, feeds, references)
    except (DemiError, ValueError, RuntimeError, AssertionError, TypeError, KeyError, AttributeError) as problem:
        logger.info("%s dropped: %s", what, problem)
        return prepared
    if not error <= same:
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
