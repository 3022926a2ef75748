"""A half model that does not get through its inputs: the node where it fails, and what there is before it.

An index that rounding drove out of bounds ends the run. What ran before can still be compared: the half model is cut
off in front of the node that failed, and what becomes of the answer is told from there.
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
    """The node by which a half model fails, its place in the order of execution, from 1, and why in the runtime's words."""

    node: str
    op_type: str
    position: int
    why: str

    @property
    def sentence(self) -> str:
        """What happens there, and what to do."""
        return (
            f"`{self.node}` ({self.op_type}) ends the run in half: {self.why}; "
            "keep what computes its inputs in FP32 (demi export --keep-fp32)"
        )


def failure_of(error: InferenceError, mixed: ir.Model) -> Failure:
    """The node of the half model by which a run of the twins failed; InferenceError when it was the reference's own."""
    places = {node.name or "": (k, node) for k, node in enumerate(mixed.graph, start=1)}
    for name in _NODE.findall(error.message):  # a node with a body comes before what fails inside it
        own = name.removeprefix(HALF).removeprefix(ALONE)
        if own != name and own in places:
            position, node = places[own]
            return Failure(own, node.op_type, position, error.message.rpartition(_WHY)[2])
    raise InferenceError(
        f"the FP32 reference does not get through these inputs: {error.message}",
        hint="give inputs that the model was made for with --input",
    ) from error


def before(mixed: ir.Model, failure: Failure) -> ir.Model:
    """The half model up to the node that failed; outputs that are made later are not there."""
    part = mixed.clone()
    rest = list(part.graph)[failure.position - 1 :]
    made = {value for node in rest for value in node.outputs}
    kept = [value for value in part.graph.outputs if value not in made]
    part.graph.outputs.clear()
    part.graph.outputs.extend(kept)
    part.graph.remove(rest, safe=True)
    return part
