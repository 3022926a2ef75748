"""Optimize before planning: fold constants, remove no-ops, fuse primitives into operators that are better in half.

A LayerNormalization or RMSNormalization operator keeps its statistics in FP32 inside its kernel; written out in
primitives, its squares and sums must stay FP32, with casts around them. The rewriting is onnxscript's; it is kept only
if the outputs agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from demi.calibration.sessions import weight_bytes
from demi.exporter.passes.channel_folding import fold_channels
from demi.exporter.passes.folding import should_fold
from demi.exporter.passes.proof import SAME, proven
from demi.tensors import Feeds

OPSET_LAYER_NORMALIZATION = 17
OPSET_RMS_NORMALIZATION = 23

TOO_LARGE = 1 << 31
"""Bytes of weights beyond which nothing is optimized: the rewriter would read them all."""


def optimize(prepared: ir.Model, feeds: Sequence[Feeds], references: Sequence[Feeds], same: float = SAME) -> ir.Model:
    """Return an equivalent model with fewer nodes; `prepared` itself when nothing was found or outputs would differ.

    Before, after and dropped rewritings: see `proof.proven`. Channels are folded after everything else, with a proof of
    their own: it moves the weights' last digits, which some models magnify.
    """
    if weight_bytes(prepared) > TOO_LARGE:
        return prepared
    rewritten = proven("optimization", prepared, _rewritten, feeds, references, same)
    return proven("folding of channels", rewritten, fold_channels, feeds, references, same)


def _rewritten(model: ir.Model) -> ir.Model | None:
    """onnxscript's constant folding and rewrite rules, each where the opset has the operator it fuses to.

    Returns None if they change no node.
    """
    import onnxscript.optimizer
    import onnxscript.rewriter
    from onnxscript.rewriter.rules.common import _no_op
    from onnxscript.rewriter.rules.fusion import _layer_norm, _rms_normalization

    from demi.exporter.passes.fusions import constants_last, fusion_rules

    before = _nodes(model)
    types = [(value.name, value.type, value.shape) for value in model.graph.outputs]
    common.AddDefaultAttributesPass()(model)  # the rules match `keepdims=1` only where it is written
    onnxscript.optimizer.optimize_ir(model, output_size_limit=TOO_LARGE, should_fold=should_fold)
    rules = list(_no_op.rules)
    opset = model.opset_imports.get("", 0)
    if opset >= OPSET_LAYER_NORMALIZATION:
        rules += _layer_norm.layer_normalization_rules
    if opset >= OPSET_RMS_NORMALIZATION:
        rules += _rms_normalization.rms_normalization_rules
    constants_last(model)
    rules += fusion_rules(model)
    model = onnxscript.rewriter.rewrite(model, pattern_rewrite_rules=rules)
    common.RemoveUnusedNodesPass()(model)
    for value, (name, kind, shape) in zip(model.graph.outputs, types, strict=True):
        value.name, value.type, value.shape = name, kind, shape
    return model if _nodes(model) != before else None


def _nodes(model: ir.Model) -> list[tuple[object, ...]]:
    """Return what the nodes are and what they read and make, without their attributes."""
    return [
        (node.domain, node.op_type, *(value and value.name for value in (*node.inputs, *node.outputs)))
        for node in model.graph.all_nodes()
    ]
