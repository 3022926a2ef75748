"""Optimize: what pays in half, before planning - constants folded, no-ops removed, normalizations fused.

A LayerNormalization or RMSNormalization operator keeps its statistics in FP32 inside its kernel; written out in
primitives, its squares and sums must stay FP32 and be cast around. The rewriting is onnxscript's; the outputs decide
whether it is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from calibration.observe import FAITHFUL
from calibration.sessions import session_for, weight_bytes
from demi.compare import relative_l2
from demi.errors import DemiError
from demi.tensors import Feeds
from exporter.passes.prepare import prepare

logger = logging.getLogger(__name__)

SAME = 1e-5
"""Relative L2 within which an optimized FP32 model computes the same: other orders of summation, nothing else."""

FOLDED_ELEMENTS = 1 << 20
"""Constants that folding may make, in elements: a folded Expand or table must not outgrow the weights."""

TOO_LARGE = 1 << 31
"""Bytes of weights beyond which nothing is optimized: the rewriter would read them all."""


def optimize(prepared: ir.Model, feeds: Sequence[Feeds], references: Sequence[Feeds]) -> ir.Model:
    """An equivalent model with fewer nodes, or `prepared` itself when nothing was found or outputs would differ.

    Before: `prepared` went through `prepare`, and `references` are its outputs for `feeds`. After: so did the result;
    its outputs on `feeds` agree within `SAME`, its public names and types are the same. Why a rewriting was dropped is
    logged.
    """
    if weight_bytes(prepared) > TOO_LARGE:
        return prepared
    try:
        candidate = prepare(_rewritten(prepared))
        error = _difference(candidate, feeds, references)
    except (DemiError, ValueError, RuntimeError, AssertionError, TypeError, KeyError, AttributeError) as problem:
        logger.info("optimization dropped: %s", problem)
        return prepared
    if not error <= SAME:
        logger.info("optimization dropped: outputs differ by %.2g relative L2", error)
        return prepared
    return candidate


def _rewritten(prepared: ir.Model) -> ir.Model:
    """onnxscript's constant folding and rewrite rules, each where the opset has the operator it fuses to."""
    import onnxscript.optimizer
    import onnxscript.rewriter
    from onnxscript.rewriter.rules.common import _no_op
    from onnxscript.rewriter.rules.fusion import _layer_norm, _rms_normalization

    model = prepared.clone()
    types = [(value.name, value.type, value.shape) for value in model.graph.outputs]
    common.AddDefaultAttributesPass()(model)  # the rules match `keepdims=1` only where it is written
    onnxscript.optimizer.optimize_ir(model, output_size_limit=FOLDED_ELEMENTS)
    rules = list(_no_op.rules)
    opset = model.opset_imports.get("", 0)
    if opset >= OPSET_LAYER_NORMALIZATION:
        rules += _layer_norm.layer_normalization_rules
    if opset >= OPSET_RMS_NORMALIZATION:
        rules += _rms_normalization.rms_normalization_rules
    model = onnxscript.rewriter.rewrite(model, pattern_rewrite_rules=rules)
    common.RemoveUnusedNodesPass()(model)
    for value, (name, kind, shape) in zip(model.graph.outputs, types, strict=True):
        value.name, value.type, value.shape = name, kind, shape
    return model


OPSET_LAYER_NORMALIZATION = 17
OPSET_RMS_NORMALIZATION = 23


def _difference(candidate: ir.Model, feeds: Sequence[Feeds], references: Sequence[Feeds]) -> float:
    """The largest relative L2 of an output over the samples."""
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
