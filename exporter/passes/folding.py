"""Constant folding rules: fold what costs no more memory than it replaces.

A weight behind a Slice or a Transpose is folded whatever its size. Otherwise it could be stored twice: in the precision
of the node that moves it, and in that of the node that computes with it.
"""

from __future__ import annotations

import math

import onnx_ir as ir

FOLDED_ELEMENTS = 1 << 20
"""Elements by which a folded constant may outgrow what it replaces: a folded Expand or table must not outgrow the weights."""

UNFOLDED_ELEMENTS = 1 << 13
"""Largest number of elements of a constant that is always folded."""

MOVES = frozenset("Concat Flatten Gather Identity Reshape Slice Split Squeeze Transpose Unsqueeze".split())
"""Operators that move a weight's numbers without changing them."""


def should_fold(node: ir.Node) -> bool | None:
    """Return whether to fold a node whose inputs are all constant; None leaves it to the folder's own rules.

    A weight that is moved is folded whatever its size when all its readers move it, too, so that it disappears.
    """
    if (made := _elements(node)) is None:
        return None
    if node.op_type in MOVES and node.domain in ("", "ai.onnx"):
        large = [value for value in node.inputs if value is not None and _size(value) > UNFOLDED_ELEMENTS]
        if large:
            return all(_goes(value) for value in large) or None
    return (
        False if made > FOLDED_ELEMENTS + sum(_size(value) for value in node.inputs if _is_read_once(value)) else None
    )


def _goes(weight: ir.Value) -> bool:
    """Return whether the weight is unused once its movers are folded, and their results are no larger than it."""
    if weight.is_graph_output():
        return False
    made = 0
    for reader in weight.consumers():
        constant = all(value is None or value.const_value is not None for value in reader.inputs)
        if reader.op_type not in MOVES or not constant or (elements := _elements(reader)) is None:
            return False
        made += elements
    return made <= _size(weight) + FOLDED_ELEMENTS


def _size(value: ir.Value | None) -> int:
    """Return the number of elements of a constant; 0 for any other value."""
    return value.const_value.size if value is not None and value.const_value is not None else 0


def _is_read_once(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _elements(node: ir.Node) -> int | None:
    """Return the number of elements a node makes; None when a shape is not known."""
    total = 0
    for value in node.outputs:
        if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
            return None
        total += math.prod(int(dim) for dim in value.shape if isinstance(dim, int))
    return total
