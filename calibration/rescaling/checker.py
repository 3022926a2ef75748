"""The checker of a rescaling: whether a model gives the original's answers, for all inputs, by its certificate.

It starts from what the certificate says of constants and epsilons, carries exponents forward through every node
(`forward`), and refuses where operands of different scales meet, where a scaled tensor reaches an operator that does not
scale, or where an output of the graph is scaled. Then the outputs are the original's, to the last bit, for every input
whose numbers stay normal in FP32 on the way. How the exponents were found does not matter here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from demi.calibration.graph_pieces import subgraphs_of
from demi.calibration.rescaling.certificate import Certificate, ScaledConstant, ScaledNumber
from demi.calibration.rescaling.forward import Claims, Exponent, RefusedError, fixed, forward, same
from demi.calibration.weights import pieces

TURNS = 4
"""Most passes through a loop's body until the exponents of its carried values are stable."""

_LOWERED = re.compile(r"_(fp16|bf16)(_\d+)?$")
"""Suffix of a weight's name after its conversion to half."""


def check_rescaled(original: ir.Model, rescaled: ir.Model, certificate: Certificate) -> list[str]:
    """Return the errors in the certificate of a rescaled FP32 model; empty if it is exactly the original, scaled.

    Looks at every node, every constant's bits and every equation. Both models went through the same `prepare`.
    """
    named = {each.name: each for each in certificate.constants}
    problems = _other_nodes(original, rescaled, certificate)
    problems += _other_constants(original, rescaled, named)
    problems += _other_numbers(rescaled, certificate.numbers, original)
    return problems or check_exponents(rescaled, certificate, lambda name: named.get(name))


def check_lowered(mixed: ir.Model, certificate: Certificate, reference: ir.Model | None = None) -> list[str]:
    """Return the errors in the certificate of a model that was rescaled and then converted to half.

    Every equation is looked at, and every number; constants that the reference has under the same name are compared with
    it, rounded to half.
    """
    named = {each.name: each for each in certificate.constants}
    missing = _missing(mixed, certificate)
    problems = missing + _other_numbers(mixed, certificate.numbers)
    if reference is not None:
        problems += _other_halves(mixed, reference, named)
    return problems or check_exponents(mixed, certificate, lambda name: _lowered_constant(name, named))


def check_exponents(
    model: ir.Model, certificate: Certificate, constant: Callable[[str], ScaledConstant | None]
) -> list[str]:
    """Return the errors in the exponents of a rescaled model; `constant` returns the claimed exponent of a constant."""
    walk = _Walk(certificate, constant)
    for value in model.graph.inputs:
        walk.exponents[value] = 0
    walk.through(model.graph)
    for value in model.graph.outputs:
        if walk.of(value):
            walk.problems.append(f"the output `{value.name}` is 2^{walk.of(value)} times the original's")
    return walk.problems


@dataclass(slots=True)
class _Walk:
    """Propagation of exponents through a model."""

    certificate: Certificate
    constant: Callable[[str], ScaledConstant | None]
    exponents: dict[ir.Value, Exponent] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    numbers: Mapping[str, Mapping[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        numbers: dict[str, dict[str, int]] = {}
        for each in self.certificate.numbers:
            numbers.setdefault(each.node, {})[each.attribute] = each.exponent
        self.numbers = numbers

    def of(self, value: ir.Value | None) -> Exponent:
        """Return a value's exponent; for a constant, the claimed one."""
        if value is None:
            return None
        if value not in self.exponents:
            self.exponents[value] = self._of_constant(value)
        return self.exponents[value]

    def _of_constant(self, value: ir.Value) -> Exponent:
        claimed = self.constant(value.name or "")
        if claimed is not None and claimed.exponent:
            return claimed.exponent
        return None if value.const_value is not None and _is_zero(value.const_value) else 0

    def through(self, graph: ir.Graph) -> None:
        """Propagate through every node of a graph, in order, and through its subgraphs."""
        for node in graph:
            try:
                made = self._of_outputs(node)
            except RefusedError as why:
                self.problems.append(f"`{node.name}` ({node.op_type}): {why}")
                made = [self.certificate.tensors.get(value.name or "", 0) for value in node.outputs]
            for value, exponent in zip(node.outputs, made, strict=True):
                self._settle(value, exponent)

    def _settle(self, value: ir.Value, exponent: Exponent) -> None:
        claimed = self.certificate.tensors.get(value.name or "")
        if claimed is not None and exponent is not None and claimed != exponent:
            self.problems.append(f"`{value.name}` is 2^{exponent} times the original's, not 2^{claimed}")
        self.exponents[value] = exponent

    def _of_outputs(self, node: ir.Node) -> list[Exponent]:
        graphs = subgraphs_of(node)
        if not graphs:
            inputs = [self.of(value) for value in node.inputs]
            return forward(Claims(node, inputs, self.numbers.get(node.name or "", {})))
        if node.op_type == "If":
            for graph in graphs:
                self.through(graph)
            return [same(*(self.of(graph.outputs[i]) for graph in graphs)) for i in range(len(node.outputs))]
        if node.op_type == "Loop":
            return self._turned(node, graphs[0], node.inputs[2:], behind=2, ahead=1, scanned=0)
        if node.op_type == "Scan" and len(node.inputs) == len(graphs[0].inputs):
            scanned = node.attributes["num_scan_inputs"].as_int()
            return self._turned(node, graphs[0], node.inputs, behind=0, ahead=0, scanned=scanned)
        fixed(*(self.of(value) for value in node.inputs))
        for graph in graphs:
            self._inside(graph, [0] * len(graph.inputs))
            fixed(*(self.of(value) for value in graph.outputs))
        return [0] * len(node.outputs)

    def _turned(
        self, node: ir.Node, body: ir.Graph, given: Sequence[ir.Value | None], *, behind: int, ahead: int, scanned: int
    ) -> list[Exponent]:
        """Propagate through a loop: carried values must have the same exponent after an iteration."""
        fixed(*(self.of(value) for value in node.inputs[:behind]))
        held = [self.of(value) for value in given]
        carried = len(held) - scanned
        for _ in range(TURNS):
            so_far = len(self.problems)
            self._inside(body, [0] * behind + held)
            again = [same(held[i], self.of(body.outputs[i + ahead])) for i in range(carried)]
            if again == held[:carried]:
                break
            held[:carried] = again  # zeros before the first turn took the scale of what a turn makes
            del self.problems[so_far:]
        return [*held[:carried], *(self.of(value) for value in body.outputs[carried + ahead :])]

    def _inside(self, body: ir.Graph, given: Sequence[Exponent]) -> None:
        for value, exponent in zip(body.inputs, given, strict=True):
            self._settle(value, exponent)
        self.through(body)


def _is_zero(tensor: ir.TensorProtocol) -> bool:
    """Return whether a float constant is all zeros."""
    if tensor.dtype is ir.DataType.FLOAT:
        return all(not piece.any() for piece in pieces(tensor))
    return tensor.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) and not tensor.numpy().any()


def _all_constants(model: ir.Model) -> dict[str, ir.Value]:
    graphs = (model.graph, *model.graph.subgraphs())
    return {name: value for graph in graphs for name, value in graph.initializers.items()}


def _other_nodes(original: ir.Model, rescaled: ir.Model, certificate: Certificate) -> list[str]:
    """Return the nodes and connections that differ from the original's with its certified products."""
    origins = {each.name: each.source for each in certificate.constants if each.source}
    factors = {each.name for each in certificate.constants if not each.source}
    left = []
    for node in rescaled.graph.all_nodes():
        factor = node.inputs[1] if node.op_type == "Mul" and len(node.inputs) == 2 else None
        if factor is not None and factor.name in factors and node.inputs[0] is not None:
            origins[node.outputs[0].name or ""] = node.inputs[0].name or ""
        else:
            left.append(node)
    before = list(original.graph.all_nodes())
    if [node.name for node in before] != [node.name for node in left]:
        return ["the rescaled model has other nodes than the original"]
    return [
        f"`{old.name}` is another node in the rescaled model"
        for old, new in zip(before, left, strict=True)
        if _shape_of(old, {}, certificate.numbers) != _shape_of(new, origins, certificate.numbers)
    ]


def _shape_of(node: ir.Node, origins: Mapping[str, str], numbers: Sequence[ScaledNumber]) -> object:
    """Return the parts of a node that must be equal: operator, uncertified attributes, inputs and outputs."""
    scaled = {each.attribute for each in numbers if each.node == node.name}
    attributes = {
        name: str(each.value) if not _is_graph(each) else ""
        for name, each in node.attributes.items()
        if name not in scaled
    }
    inputs = [value and origins.get(value.name or "", value.name) for value in node.inputs]
    return node.op_type, node.domain, attributes, inputs, [value.name for value in node.outputs]


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _other_constants(original: ir.Model, rescaled: ir.Model, named: Mapping[str, ScaledConstant]) -> list[str]:
    """Return the constants that are not the original's times their power of two, bit by bit."""
    before = _all_constants(original)
    problems = []
    for name, value in _all_constants(rescaled).items():
        claimed = named.get(name, ScaledConstant(name, name, 0))
        tensor = value.const_value
        if tensor is None:
            continue
        if not claimed.source:
            if not _is_power(tensor, claimed.exponent):
                problems.append(f"`{name}` is not 2^{claimed.exponent}")
            continue
        source = before[claimed.source].const_value if claimed.source in before else None
        if source is None:
            problems.append(f"the original has no constant `{claimed.source}`")
        elif source is not tensor and not _is_multiple(source, tensor, claimed.exponent):
            problems.append(f"`{name}` is not 2^{claimed.exponent} times `{claimed.source}`")
    return problems


def _is_power(tensor: ir.TensorProtocol, exponent: int) -> bool:
    return tensor.size == 1 and float(tensor.numpy().reshape(-1)[0]) == math.ldexp(1.0, exponent)


def _is_multiple(source: ir.TensorProtocol, tensor: ir.TensorProtocol, exponent: int) -> bool:
    """Return whether a float32 constant is 2^exponent times another, in float64, where no product is rounded."""
    if source.dtype is not tensor.dtype or source.shape != tensor.shape:
        return False
    if source.dtype is not ir.DataType.FLOAT:
        return not exponent and source.tobytes() == tensor.tobytes()
    power = math.ldexp(1.0, exponent)
    return all(
        np.array_equal(old.astype(np.float64) * power, new.astype(np.float64), equal_nan=True)
        for old, new in zip(pieces(source), pieces(tensor), strict=True)
    )


def _other_numbers(model: ir.Model, numbers: Sequence[ScaledNumber], original: ir.Model | None = None) -> list[str]:
    """Return the attributes that are not the original number times its power of two."""
    nodes = {node.name: node for node in model.graph.all_nodes()}
    before = {node.name: node for node in original.graph.all_nodes()} if original is not None else {}
    problems = []
    for each in numbers:
        held = nodes[each.node].attributes.get(each.attribute) if each.node in nodes else None
        if held is None or held.as_float() != math.ldexp(each.original, each.exponent):
            problems.append(f"`{each.attribute}` of `{each.node}` is not {each.original:g} times 2^{each.exponent}")
        was = before[each.node].attributes.get(each.attribute) if each.node in before else None
        if was is not None and was.as_float() != each.original:
            problems.append(f"`{each.attribute}` of `{each.node}` is not {each.original:g} in the original")
    return problems


def _lowered_constant(name: str, named: Mapping[str, ScaledConstant]) -> ScaledConstant | None:
    """Return the claim on a constant, which may have been converted to half."""
    return named.get(name) or named.get(_LOWERED.sub("", name))


def _missing(mixed: ir.Model, certificate: Certificate) -> list[str]:
    """Return the certified constants that the model does not have."""
    held = {_LOWERED.sub("", name) for name in _all_constants(mixed)} | _all_constants(mixed).keys()
    return [f"the model has no constant `{each.name}`" for each in certificate.constants if each.name not in held]


def _other_halves(mixed: ir.Model, reference: ir.Model, named: Mapping[str, ScaledConstant]) -> list[str]:
    """Return the certified constants that are not the reference's times their power of two, rounded to their type."""
    before = _all_constants(reference)
    problems = []
    for name, value in _all_constants(mixed).items():
        claimed, tensor = _lowered_constant(name, named), value.const_value
        if claimed is None or tensor is None:
            continue
        if not claimed.source:
            if not _is_power(tensor, claimed.exponent):
                problems.append(f"`{name}` is not 2^{claimed.exponent}")
            continue
        source = before[claimed.source].const_value if claimed.source in before else None
        if source is not None and source.dtype is ir.DataType.FLOAT and source.shape == tensor.shape:
            with np.errstate(over="ignore", under="ignore"):
                wanted = np.ldexp(source.numpy(), claimed.exponent).astype(tensor.dtype.numpy())
            if not np.array_equal(wanted, tensor.numpy(), equal_nan=True):
                problems.append(f"`{name}` is not 2^{claimed.exponent} times the reference's `{claimed.source}`")
    return problems
