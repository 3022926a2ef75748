"""Tidy: remove everything that is not read, and every cast that undoes another."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

WIDER = {
    ir.DataType.FLOAT16: frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE}),
    ir.DataType.BFLOAT16: frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE}),
    ir.DataType.FLOAT: frozenset({ir.DataType.DOUBLE}),
}
"""The types that represent every number of a type: a cast there and back changes nothing."""


def tidy(model: ir.Model) -> bool:
    """Remove what `model` does not need, in place; return whether anything was removed.

    Before: a valid model with typed tensors. After: every node and initializer, also in subgraphs, is read or makes an
    output; functions and opset imports are those in use (the standard one always stays); no Cast has equal input and
    output types, and no two casts widen a float and narrow it back. Results, bit for bit, and public names and types
    are unchanged. A cast that rounds is never removed: FP32 to half and back is not a no-op.
    """
    changed = _cancel_casts(model)
    functions = common.RemoveUnusedFunctionsPass()  # type: ignore[no-untyped-call]
    for step in (common.RemoveUnusedNodesPass(), functions, common.RemoveUnusedOpsetsPass()):
        changed = step(model).modified or changed
    return _drop_inner_initializers(model) or changed


def _cancel_casts(model: ir.Model) -> bool:
    """Let the readers of a cast that changes nothing read the earlier value."""
    changed = False
    for node in model.graph.all_nodes():
        before = _unchanged(node)
        if before is not None and not node.outputs[0].is_graph_output() and node.outputs[0].uses():
            node.outputs[0].replace_all_uses_with(before)
            changed = True
    return changed


def _unchanged(node: ir.Node) -> ir.Value | None:
    """Return the earlier value that a Cast restores, in the same type; None when it restores none."""
    source = node.inputs[0] if node.op_type == "Cast" and node.domain == "" else None
    if source is None or source.dtype is None:
        return None
    wanted = ir.DataType(node.attributes["to"].as_int())
    if source.dtype is wanted:
        return source
    maker = source.producer()
    if maker is None or maker.op_type != "Cast" or maker.domain != "" or maker.inputs[0] is None:
        return None
    origin = maker.inputs[0]
    return origin if origin.dtype is wanted and source.dtype in WIDER.get(wanted, ()) else None


def _drop_inner_initializers(model: ir.Model) -> bool:
    """Remove unused initializers of subgraphs, which onnx-ir's pass skips."""
    changed = False
    for graph in model.graph.subgraphs():
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]
                changed = True
    return changed
