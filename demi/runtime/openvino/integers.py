"""Integers in OpenVINO: how large an input may be so that everything that is computed from it is exact.

Most of OpenVINO's CPU kernels compute with integers in FP32, which holds each of them up to 2**24 only. Beyond that,
comparisons, divisions, remainders and sums are wrong without an error (measured with 2026.4.1); a few operators are exact
in 32 bits. So bounds are followed from the integer inputs through the graph, and each input gets the largest one with
which every computed value is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demi.errors import SourceError

EXACT = 24
"""Bits of an integer that FP32 holds exactly."""

UNLIMITED = 31
"""Bits of an input that is moved, looked up and converted, and not computed with."""

LEAST = 20
"""Bits below which a limit would meet ordinary ids, so that the model is left to ONNX Runtime."""

LEAST_SUMMED = 8
"""The same for what is only summed, such as a mask of zeros and ones."""

LENGTH = 2.0**16
"""Number of elements that a sum, or a count of positions, is taken to have at most."""

MOVING = frozenset(
    "Parameter Result Convert Reshape Squeeze Unsqueeze Transpose StridedSlice Slice Split VariadicSplit Concat Tile "
    "Broadcast Pad Reverse ReverseSequence Roll Gather GatherElements GatherND ScatterUpdate ScatterElementsUpdate "
    "ScatterNDUpdate Select DepthToSpace SpaceToDepth Identity ShapeOf".split()
)
"""Operators, by OpenVINO's names, that pass integers on as they are."""

PLACES = frozenset({"NonZero", "Range", "TopK", "ShapeOf"})
"""Operators that make positions or sizes."""

IN_32_BITS = frozenset(
    "Add Subtract Maximum Minimum Abs Negative Sign BitwiseAnd BitwiseOr BitwiseXor BitwiseNot".split()
)
"""Operators that compute with integers of 32 bits exactly."""

KEEPING = frozenset("Abs Negative Maximum Minimum Clamp ReduceMax ReduceMin ReduceMean Divide OneHot".split())
"""Operators whose result is no larger than their largest operand."""

_SIZES = {"boolean": 1.0, "u8": 255.0, "i8": 128.0, "i16": 2.0**15, "u16": 2.0**16}
"""Largest magnitudes of the small types."""


@dataclass(frozen=True, slots=True)
class _Step:
    """An operation that reads what was computed from an integer input."""

    name: str
    kind: str
    reads: tuple[str | float, ...]
    """For each integer operand, the operation that computed it from an input, or its own largest magnitude."""
    element: str
    """Element type of its first output."""


def integer_limits(graph: Any) -> dict[str, int]:
    """Return the largest magnitude of each integer input by name.

    Raises SourceError for a model whose arithmetic leaves too little room for ordinary ids.
    """
    steps, names = _steps(graph)
    limits = _limits(steps, LENGTH)
    without_sums = _limits(steps, 1.0)
    for step, bits in limits.items():
        if without_sums[step] < LEAST or bits < LEAST_SUMMED:
            raise SourceError(
                f"the model computes with the integers of `{names[step]}`, which OpenVINO does in FP32, exact up to 2**24",
                hint="run this model with --runtime onnxruntime",
            )
    return {names[step]: 2**bits - (bits == UNLIMITED) for step, bits in limits.items()}


def _steps(graph: Any) -> tuple[list[_Step], dict[str, str]]:
    """Return the operations behind integer inputs, in order, and the names of these inputs by their operation's."""
    steps: dict[str, _Step] = {}
    names: dict[str, str] = {}
    for operation in graph.get_ordered_ops():
        name, kind = operation.get_name(), operation.get_type_name()
        if kind == "Parameter":
            output = operation.output(0)
            if _is_integer(element := _element(output)) and output.get_names():
                steps[name], names[name] = _Step(name, kind, (), element), min(output.get_names())
            continue
        operands = [operation.input_value(at) for at in range(operation.get_input_size())]
        if not any(operand.get_node().get_name() in steps for operand in operands) or not operation.get_output_size():
            continue
        if kind == "ShapeOf":
            continue  # a size is no value of an input
        reads = tuple(_magnitude(operand, steps) for operand in operands if _is_integer(_element(operand)))
        element = _element(operation.output(0))
        if reads and (kind not in MOVING or _is_integer(element)):
            steps[name] = _Step(name, kind, reads, element)
    return list(steps.values()), names


def _magnitude(operand: Any, steps: Mapping[str, _Step]) -> str | float:
    node = operand.get_node()
    if node.get_name() in steps:
        return str(node.get_name())
    if node.get_type_name() == "Constant":
        data = node.get_data()
        return float(abs(data.astype(float)).max()) if data.size else 0.0
    return _SIZES.get(_element(operand), LENGTH)


def _limits(steps: Sequence[_Step], length: float) -> dict[str, int]:
    """Return the most bits of each input, by operation, with sums of so many elements; down to zero."""
    limits = {step.name: UNLIMITED for step in steps if step.kind == "Parameter"}
    while True:
        beyond = _beyond(steps, limits, length)
        if not beyond:
            return limits
        for name in beyond:
            limits[name] -= 1
        if min(limits.values()) <= 0:
            return limits


def _beyond(steps: Sequence[_Step], limits: Mapping[str, int], length: float) -> set[str]:
    """Return the inputs behind the first operation that computes with integers, or makes some, that are not exact."""
    bounds: dict[str, float] = {}
    behind: dict[str, frozenset[str]] = {}
    for step in steps:
        if step.kind == "Parameter":
            bounds[step.name] = min(_SIZES.get(step.element, math.inf), 2.0 ** limits[step.name])
            behind[step.name] = frozenset({step.name})
            continue
        operands = [bounds[each] if isinstance(each, str) else each for each in step.reads]
        behind[step.name] = frozenset().union(*(behind[each] for each in step.reads if isinstance(each, str)))
        made = 1.0 if step.element == "boolean" else _bound(step.kind, operands, length)
        bounds[step.name] = min(made, _SIZES.get(step.element, math.inf))
        is_float = not _is_integer(step.element)
        exact = 2.0 ** (UNLIMITED if step.kind in IN_32_BITS else EXACT)
        if step.kind not in MOVING and max([*operands, 0.0 if is_float else made]) > exact:
            return set(behind[step.name])
    return set()


def _bound(kind: str, operands: Sequence[float], length: float) -> float:
    """Return the largest magnitude of the result of an operator."""
    if kind in MOVING or kind in KEEPING:
        return max(operands)
    if kind in PLACES:
        return max(LENGTH, *operands)
    if kind in ("Add", "Subtract"):
        return sum(operands)
    if kind == "Multiply":
        return math.prod(operands)
    if kind in ("Mod", "FloorMod"):
        return min(operands)
    if kind in ("ReduceSum", "CumSum"):
        return operands[0] * length
    if kind == "Sign":
        return 1.0
    if kind.startswith("Bitwise") and "Shift" not in kind:
        return 2 * max(operands)
    return math.inf


def _element(port: Any) -> str:
    return str(port.get_element_type().get_type_name())


def _is_integer(element: str) -> bool:
    return element[0] in "iu" or element == "boolean"
