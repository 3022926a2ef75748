"""A half model that fails on its inputs: the node that fails, and the part of the model before it.

An index that rounding drove out of bounds ends the run. Everything before it can still be compared, so the half model
is cut off in front of the node that fails.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

from demi.calibration.explain.twins import ALONE, HALF
from demi.errors import InferenceError

_NODE = re.compile(r"running \S+ node\. Name:'([^']*)'")
_WHY = "Status Message: "


@dataclass(frozen=True, slots=True)
class Failure:
    """The node at which a half model fails, its position in the order of execution, from 1, and the runtime's message."""

    node: str
    op_type: str
    position: int
    why: str

    @property
    def sentence(self) -> str:
        """Return a sentence on what happens there and what to do."""
        return (
            f"`{self.node}` ({self.op_type}) fails in half: {self.why}; "
            "keep the nodes that compute its inputs in FP32 (demi export --keep-fp32)"
        )


def failure_of(error: InferenceError, mixed: ir.Model) -> Failure:
    """Return the half model's node at which a run of the twins failed. Raises InferenceError if the reference failed."""
    places = {node.name or "": (k, node) for k, node in enumerate(mixed.graph, start=1)}
    for name in _NODE.findall(error.message):  # a node with a body comes before what fails inside it
        own = name.removeprefix(HALF).removeprefix(ALONE)
        if own != name and own in places:
            position, node = places[own]
            return Failure(own, node.op_type, position, error.message.rpartition(_WHY)[2])
    raise InferenceError(
        f"the FP32 reference fails on these inputs: {error.message}",
        hint="give inputs that the model was made for with --input",
    ) from error


def before(mixed: ir.Model, failure: Failure) -> ir.Model:
    """Return the half model up to the node that failed, without the outputs that are computed later."""
    part = mixed.clone()
    rest = list(part.graph)[failure.position - 1 :]
    made = {value for node in rest for value in node.outputs}
    kept = [value for value in part.graph.outputs if value not in made]
    part.graph.outputs.clear()
    part.graph.outputs.extend(kept)
    part.graph.remove(rest, safe=True)
    return part
