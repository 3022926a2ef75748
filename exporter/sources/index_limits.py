"""Limits of integer inputs that index into constant tables."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def index_limits(model: ir.Model) -> dict[str, int]:
    """Return, for each integer input that looks up rows of constant tables (embeddings), the rows of the smallest."""
    limits: dict[str, int] = {}
    for value in model.graph.inputs:
        sizes = [rows for node, position in _uses(value) if (rows := _table_rows(node, position))]
        if sizes:
            limits[value.name or ""] = min(sizes)
    return limits


MOVES = frozenset({"Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Transpose", "Flatten"})


def _uses(value: ir.Value) -> Sequence[tuple[ir.Node, int]]:
    """Return the nodes that read a value, directly or through any chain of MOVES."""
    found: list[tuple[ir.Node, int]] = []
    left, seen = [value], {value}
    while left:
        for use in left.pop().uses():
            found.append((use.node, use.idx))
            if use.node.op_type in MOVES and use.idx == 0 and (moved := use.node.outputs[0]) not in seen:
                seen.add(moved)
                left.append(moved)
    return found


def _table_rows(node: ir.Node, position: int) -> int | None:
    table = node.inputs[0] if node.op_type == "Gather" and position == 1 else None
    axis = node.attributes.get_int("axis", 0) if table is not None else 0
    constant = ir.convenience.get_const_tensor(table) if table is not None and axis == 0 else None
    return int(constant.shape.numpy()[0]) if constant is not None and len(constant.shape) else None
