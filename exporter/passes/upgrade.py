"""Upgrade: a newer opset, when the half type that is wanted needs one, and not otherwise.

Before opset 22, Conv, pooling, GRU and many functions take no bfloat16. The converters are onnxscript's, which works on
the graph in place, and for opsets before 18 ONNX's own, which is shown the graph without its large weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from demi.errors import ConversionError
from demi.tensors import Feeds
from exporter import schemas
from exporter.constraints import ALWAYS_SINGLE
from exporter.optables import NO_HALF_KERNEL
from exporter.passes.proof import proven

IN_PLACE_FROM = 18
"""From this opset on onnxscript's converter knows every change; models before it go through ONNX's own to here."""


def upgrade(prepared: ir.Model, half: ir.DataType, feeds: Sequence[Feeds], references: Sequence[Feeds]) -> ir.Model:
    """`prepared` in the oldest opset in which its nodes take `half`, or itself when its own is as good.

    Before, after and dropped rewritings: as `proof.proven` has it. The IR version stays.
    """
    target = wanted_opset(prepared, half)
    if target is None:
        return prepared
    return proven(f"upgrade to opset {target}", prepared, lambda model: converted(model, target), feeds, references)


def wanted_opset(prepared: ir.Model, half: ir.DataType) -> int | None:
    """The oldest opset in which every node that can gain a half type has it; None when no node gains any."""
    current = prepared.opset_imports.get("", 0)
    found = {schemas.half_since(node, current, half) for node in prepared.graph.all_nodes() if _would_gain(node)}
    return max((version for version in found if version is not None), default=None)


def converted(model: ir.Model, target: int) -> ir.Model:
    """The model in opset `target`, in place where the converter can; ConversionError when a node resists."""
    from onnxscript.version_converter import ConvertVersionPass

    for version in (IN_PLACE_FROM, target):
        if model.opset_imports[""] < version:
            model = ConvertVersionPass(version, fallback=version == IN_PLACE_FROM)(model).model
    behind = [node for node in model.graph.all_nodes() if node.domain == "" and (node.version or target) != target]
    if behind or model.opset_imports[""] != target:
        raise ConversionError(f"`{behind[0].name}` has no form in it" if behind else "the converter gave up")
    common.RemoveUnusedNodesPass()(model)
    return model


def _would_gain(node: ir.Node) -> bool:
    """Whether half would be used: not where no runtime computes it, or where no measurement brings it to half."""
    kept = node.op_type in NO_HALF_KERNEL or node.op_type in ALWAYS_SINGLE
    return node.domain in ("", "ai.onnx") and schemas.touches_float(node) and not kept
