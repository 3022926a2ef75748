"""Reasons: why each node fits half that did not, from the scaled constants before it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from demi.calibration.rescaling.certificate import Certificate, ScaledConstant, as_array

FOLLOWS = frozenset({"Add", "Sub", "Sum", "Max", "Min", "Clip", "Where", "Concat", "Pad"})
"""Operators whose constants take the scale of what they meet, and give none."""


def why_they_fit(names: Collection[str], changed: ir.Model, certificate: Certificate) -> dict[str, str]:
    """Return in words why each node fits: the scaled constants nearest to it, up from what it reads."""
    scaled = {each.name: each for each in certificate.constants}
    return {
        node.name or "": f"fits since {_most_changed(near, scaled)}"
        for node in changed.graph.all_nodes()
        if node.name in names and (near := _nearest(node, scaled))
    }


def _nearest(node: ir.Node, scaled: Mapping[str, ScaledConstant]) -> list[ir.Value]:
    """The scaled factors that the fewest nodes stand before, `node` among them."""
    seen, level = {node}, [node]
    while level:
        given = [value for each in level if each.op_type not in FOLLOWS for value in each.inputs if value is not None]
        if found := [value for value in dict.fromkeys(given) if value.name in scaled]:
            return found
        makers = (value.producer() for each in level for value in each.inputs if value is not None)
        level = [each for each in dict.fromkeys(makers) if each is not None and each not in seen]
        seen.update(level)
    return []


def _most_changed(constants: Sequence[ir.Value], scaled: Mapping[str, ScaledConstant]) -> str:
    """`weight` x 2^-9, of several the one that changed most; for a power of two, the tensor that it multiplies."""
    value = max(constants, key=lambda each: np.abs(as_array(scaled[each.name or ""].exponent)).max())
    claimed = scaled[value.name or ""]
    times = None if claimed.source else value.consumers()[0].inputs[0]
    return f"`{times.name if times is not None else claimed.source}` x 2^{claimed.exponent}"
