"""Upgrade: raise the opset when the wanted half type needs it, and not otherwise.

Before opset 13 hardly any operator takes bfloat16, and before opset 22 Conv, pooling, GRU and many functions do not.
Half is measured with operators of opset 9 (Where, Sign), so that older models are raised to it. The converters are
onnxscript's, which works on the graph in place, and for opsets before 18 ONNX's own, which gets the graph without its
large weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from demi.errors import ConversionError
from demi.exporter.operators import schemas
from demi.exporter.operators.tables import ALWAYS_SINGLE, NO_HALF_KERNEL
from demi.exporter.passes.proof import proven
from demi.tensors import Feeds

IN_PLACE_FROM = 18
"""The oldest opset that onnxscript's converter handles completely; ONNX's own raises older models to it."""

MEASURABLE_FROM = 9
"""The oldest opset in which half can be measured: its switches are made of Where."""


def upgrade(prepared: ir.Model, half: ir.DataType, feeds: Sequence[Feeds], references: Sequence[Feeds]) -> ir.Model:
    """Return `prepared` in the oldest opset in which its nodes take `half`, or itself when that gains nothing.

    Where a node has no form in that opset, the next older one in which others take half is tried. Before, after and
    dropped rewritings: see `proof.proven`. The IR version stays.
    """
    for target in wanted_opsets(prepared, half):
        what = f"upgrade to opset {target}"
        raised = proven(what, prepared, functools.partial(converted, target=target), feeds, references)
        if raised is not prepared:
            return raised
    return prepared


def wanted_opsets(prepared: ir.Model, half: ir.DataType) -> list[int]:
    """Return the opsets that add a half type to some node, or in which half can be measured; the newest first.

    The first gains the most. Empty when the model's own opset is as good.
    """
    current = prepared.opset_imports.get("", 0)
    found = {schemas.half_since(node, current, half) for node in prepared.graph.all_nodes() if _would_gain(node)}
    if 0 < current < MEASURABLE_FROM:
        found.add(MEASURABLE_FROM)
    return sorted((version for version in found if version is not None), reverse=True)


def check_measurable(model: ir.Model) -> None:
    """Raise ConversionError for a model that stayed in an opset in which half cannot be measured."""
    opset = model.opset_imports.get("", 0)
    if 0 < opset < MEASURABLE_FROM:
        raise ConversionError(
            f"half cannot be measured in the model's opset {opset}, and the model cannot be raised to {MEASURABLE_FROM}",
            hint="export it with a newer opset, or add --no-calibrate",
        )


def converted(model: ir.Model, target: int) -> ir.Model:
    """Convert a model to opset `target`, in place where the converter can; ConversionError when a node has no form in it."""
    from onnxscript.version_converter import ConvertVersionPass

    for version in (min(IN_PLACE_FROM, target), target):
        if model.opset_imports[""] < version:
            model = ConvertVersionPass(version, fallback=version <= IN_PLACE_FROM)(model).model
    behind = [node for node in model.graph.all_nodes() if node.domain == "" and (node.version or target) != target]
    if behind or model.opset_imports[""] != target:
        raise ConversionError(f"`{behind[0].name}` has no form in it" if behind else "the converter gave up")
    common.RemoveUnusedNodesPass()(model)
    return model


def _would_gain(node: ir.Node) -> bool:
    """Return whether half would be used: not without a kernel, and not for operators that are always single."""
    kept = node.op_type in NO_HALF_KERNEL or node.op_type in ALWAYS_SINGLE
    return node.domain in ("", "ai.onnx") and schemas.touches_float(node) and not kept
