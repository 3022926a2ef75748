"""Propagation of exponents through a whole model, from what a certificate claims of its constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from demi.calibration.graph_pieces import subgraphs_of
from demi.calibration.rescaling.by_channel import Scale, differ, forward_by_channel, simplest, together
from demi.calibration.rescaling.certificate import Certificate, Channels, Powers, ScaledConstant, as_array
from demi.calibration.rescaling.forward import Claims, Exponent, RefusedError, fixed, forward, same
from demi.calibration.weights import pieces

TURNS = 4
"""Most passes through a loop's body until the exponents of its carried values are stable."""


def check_exponents(
    model: ir.Model, certificate: Certificate, constant: Callable[[str], ScaledConstant | None]
) -> list[str]:
    """Return the errors in the exponents of a rescaled model; `constant` returns the claimed exponent of a constant."""
    walk = _Walk(certificate, constant)
    for value in model.graph.inputs:
        walk.scales[value] = 0
    walk.through(model.graph)
    for value in model.graph.outputs:
        if np.any(scale := walk.of(value) or 0):
            walk.problems.append(f"the output `{value.name}` is {_in_words(scale)} times the original's")
    return walk.problems


def _in_words(scale: Scale) -> str:
    if isinstance(scale, np.ndarray):
        return f"2^{scale.min()} to 2^{scale.max()}"
    return f"2^{scale}"


def _of_claim(powers: Powers) -> Scale:
    return simplest(as_array(powers)) if isinstance(powers, Channels) else powers


@dataclass(slots=True)
class _Walk:
    """Propagation of exponents through a model. Owns those it has found, and the problems on the way."""

    certificate: Certificate
    constant: Callable[[str], ScaledConstant | None]
    scales: dict[ir.Value, Scale] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    numbers: Mapping[str, Mapping[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        numbers: dict[str, dict[str, int]] = {}
        for each in self.certificate.numbers:
            numbers.setdefault(each.node, {})[each.attribute] = each.exponent
        self.numbers = numbers

    def of(self, value: ir.Value | None) -> Scale:
        """Return a value's exponent; for a constant, the claimed one."""
        if value is None:
            return None
        if value not in self.scales:
            self.scales[value] = self._of_constant(value)
        return self.scales[value]

    def whole(self, value: ir.Value | None) -> Exponent:
        """Return a value's exponent. Raises RefusedError if it differs by channel."""
        scale = self.of(value)
        if isinstance(scale, np.ndarray):
            raise RefusedError("channels of different scales at the border of a graph")
        return scale

    def _of_constant(self, value: ir.Value) -> Scale:
        claimed = self.constant(value.name or "")
        if claimed is None or claimed.exponent == 0:
            return None if value.const_value is not None and _is_zero(value.const_value) else 0
        scale = _of_claim(claimed.exponent)
        if isinstance(scale, np.ndarray) and not _fits(scale, value):
            self.problems.append(f"the exponents of `{value.name}` do not fit its shape")
            return 0
        return scale

    def through(self, graph: ir.Graph) -> None:
        """Propagate through every node of a graph, in order, and through its subgraphs."""
        for node in graph:
            try:
                made = self._of_outputs(node)
            except RefusedError as why:
                self.problems.append(f"`{node.name}` ({node.op_type}): {why}")
                made = [_of_claim(self.certificate.tensors.get(value.name or "", 0)) for value in node.outputs]
            for value, exponent in zip(node.outputs, made, strict=True):
                self._settle(value, exponent)

    def _settle(self, value: ir.Value, scale: Scale) -> None:
        claimed = self.certificate.tensors.get(value.name or "")
        if claimed is not None and scale is not None and not _agree(_of_claim(claimed), scale):
            self.problems.append(
                f"`{value.name}` is {_in_words(scale)} times the original's, not {_in_words(_of_claim(claimed))}"
            )
        self.scales[value] = scale

    def _of_outputs(self, node: ir.Node) -> Sequence[Scale]:
        graphs = subgraphs_of(node)
        if not graphs:
            inputs = [self.of(value) for value in node.inputs]
            numbers = self.numbers.get(node.name or "", {})
            if any(map(differ, inputs)):
                return forward_by_channel(node, inputs, numbers)
            return forward(Claims(node, [self.whole(value) for value in node.inputs], numbers))
        if node.op_type == "If":
            for graph in graphs:
                self.through(graph)
            fixed(*(self.whole(value) for value in node.inputs))
            return [same(*(self.whole(graph.outputs[i]) for graph in graphs)) for i in range(len(node.outputs))]
        if node.op_type == "Loop":
            return self._turned(node, graphs[0], node.inputs[2:], behind=2, ahead=1, scanned=0)
        if node.op_type == "Scan" and len(node.inputs) == len(graphs[0].inputs):
            scanned = node.attributes["num_scan_inputs"].as_int()
            return self._turned(node, graphs[0], node.inputs, behind=0, ahead=0, scanned=scanned)
        fixed(*(self.whole(value) for value in node.inputs))
        for graph in graphs:
            self._inside(graph, [0] * len(graph.inputs))
            fixed(*(self.whole(value) for value in graph.outputs))
        return [0] * len(node.outputs)

    def _turned(
        self, node: ir.Node, body: ir.Graph, given: Sequence[ir.Value | None], *, behind: int, ahead: int, scanned: int
    ) -> list[Exponent]:
        """Propagate through a loop: carried values must have the same exponent after an iteration."""
        fixed(*(self.whole(value) for value in node.inputs[:behind]))
        held = [self.whole(value) for value in given]
        carried = len(held) - scanned
        for _ in range(TURNS):
            so_far = len(self.problems)
            self._inside(body, [0] * behind + held)
            again = [same(held[i], self.whole(body.outputs[i + ahead])) for i in range(carried)]
            if again == held[:carried]:
                return [*held[:carried], *(self.whole(value) for value in body.outputs[carried + ahead :])]
            held[:carried] = again  # zeros before the first turn took the scale of what a turn makes
            del self.problems[so_far:]
        raise RefusedError("the scales of carried values do not settle")

    def _inside(self, body: ir.Graph, given: Sequence[Exponent]) -> None:
        for value, exponent in zip(body.inputs, given, strict=True):
            self._settle(value, exponent)
        self.through(body)


def _agree(claimed: Scale, found: Scale) -> bool:
    try:
        together(claimed, found)
    except (RefusedError, ValueError):
        return False
    return True


def _fits(scale: Scale, value: ir.Value) -> bool:
    """Return whether a constant has the channels that its scale is about."""
    if value.const_value is None:
        return False
    shape = tuple(value.const_value.shape.numpy())
    try:
        return np.broadcast_shapes(np.shape(np.asarray(scale)), shape) == shape
    except ValueError:
        return False


def _is_zero(tensor: ir.TensorProtocol) -> bool:
    """Return whether a float constant is all zeros."""
    if tensor.dtype is ir.DataType.FLOAT:
        return all(not piece.any() for piece in pieces(tensor))
    return tensor.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) and not tensor.numpy().any()
