"""Golden inputs at load: they warm a model up, and their FP32 outputs show which outputs are finite."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from demi.bundles.bundle import Bundle
from demi.errors import TensorError
from demi.proofs.turns import with_batch
from demi.runtime.base import Session
from demi.tensors import DType, Feeds, check_feeds

log = logging.getLogger("demi.server")


def warm_up(session: Session, bundle: Bundle, *, has_limits: bool = False) -> None:
    """Run the golden inputs once, so that kernels are selected and memory is allocated before the first request.

    Without golden inputs there is no warm-up. An engine (`has_limits`) skips those of shapes it was not built for.
    Raises InferenceError or TensorError if the model fails on its own inputs.
    """
    if not bundle.has_golden:
        log.info("%s: no warm-up, because the bundle holds no golden inputs", bundle.manifest.name)
        return
    for feeds in bundle.golden().inputs:
        ready = check_feeds(session.inputs, feeds, cast_floats=True)
        try:
            session.run(ready)
        except TensorError as error:
            if not has_limits:
                raise
            log.info("%s: warm-up skips a golden set: %s", bundle.manifest.name, error.message)


def warm_batches(session: Session, bundle: Bundle, most: int) -> None:
    """Run the first golden inputs in batches of 1, 2, 4 and so on: the first run of a shape is some milliseconds slower."""
    if not bundle.has_golden:
        return
    feeds = check_feeds(session.inputs, bundle.golden().inputs[0], cast_floats=True)
    for rows in sorted({min(2**power, most) for power in range(most.bit_length() + 1)}):
        session.run(with_batch(feeds, session.inputs, rows))


def finite_outputs(bundle: Bundle) -> frozenset[str]:
    """Return the float outputs that are finite in FP32 on every golden input; all float outputs without golden inputs."""
    names = {spec.name for spec in bundle.manifest.outputs if spec.dtype.is_float and spec.dtype is not DType.BF16}
    for outputs in golden_outputs(bundle):
        names -= {
            name for name, values in outputs.items() if values.dtype.kind == "f" and not np.isfinite(values).all()
        }
    return frozenset(names)


def golden_outputs(bundle: Bundle) -> Sequence[Feeds]:
    """Return the golden FP32 outputs; empty for a bundle without them."""
    return bundle.golden().outputs if bundle.has_golden else []
