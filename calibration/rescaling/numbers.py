"""Comparison of a rescaled model's constants and attributes with the original's, number by number."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from demi.calibration.rescaling.certificate import Certificate, Channels, Powers, ScaledConstant, ScaledNumber, as_array
from demi.calibration.weights import in_piece, pieces, placed_pieces
from demi.float16 import FP16
from demi.tensors import Array

_LOWERED = re.compile(r"_(fp16|bf16)(_\d+)?$")
"""Suffix of a weight's name after its conversion to half."""

Named = Mapping[str, ScaledConstant]


def repeated_claims(certificate: Certificate) -> list[str]:
    """Return a line for each constant or number that is claimed twice: the claims could contradict each other."""
    names = [f"`{each.name}`" for each in certificate.constants]
    names += [f"`{each.attribute}` of `{each.node}`" for each in certificate.numbers]
    return [f"{name} is claimed twice" for name, count in Counter(names).items() if count > 1]


def all_constants(model: ir.Model) -> dict[str, ir.Value]:
    """Return the constants of a model and of the graphs inside it, by name."""
    graphs = (model.graph, *model.graph.subgraphs())
    return {name: value for graph in graphs for name, value in graph.initializers.items()}


def other_constants(original: ir.Model, rescaled: ir.Model, named: Named) -> list[str]:
    """Return the constants that are not the original's times their power of two, bit by bit."""
    before, after = all_constants(original), all_constants(rescaled)
    problems = [f"the model has no constant `{name}`" for name in named if name not in after]
    for name, value in after.items():
        claimed = named.get(name, ScaledConstant(name, name, 0))
        tensor = value.const_value
        if not claimed.source:
            problems += _other_power(value, claimed)
            continue
        source = before[claimed.source].const_value if claimed.source in before else None
        if source is None or tensor is None:
            problems.append(f"the original has no constant `{claimed.source}`")
        elif (source is not tensor or claimed.exponent) and not _is_multiple(source, tensor, claimed.exponent):
            problems.append(f"`{name}` is not 2^{claimed.exponent} times `{claimed.source}`")
        elif claimed.exponent and (value.is_graph_input() or before[claimed.source].is_graph_input()):
            problems.append(f"`{name}` is an input, which callers may replace")
    return problems


def _other_power(value: ir.Value, claimed: ScaledConstant) -> list[str]:
    """Return the problem of a factor that is not the power of two that it should be, or that callers may replace."""
    tensor = value.const_value
    is_power = (
        tensor is not None
        and not isinstance(claimed.exponent, Channels)
        and tensor.size == 1
        and len(tensor.shape) == 0
        and not value.is_graph_input()
        and float(tensor.numpy().reshape(-1)[0]) == math.ldexp(1.0, claimed.exponent)
    )
    return [] if is_power else [f"`{claimed.name}` is not 2^{claimed.exponent}"]


def _is_multiple(source: ir.TensorProtocol, tensor: ir.TensorProtocol, exponent: Powers) -> bool:
    """Return whether a float32 constant is 2^exponent times another, bit by bit and without a rounding."""
    if source.dtype is not tensor.dtype or source.shape != tensor.shape:
        return False
    if source.dtype is not ir.DataType.FLOAT:
        return not exponent and source.tobytes() == tensor.tobytes()
    powers, shape = as_array(exponent), tuple(source.shape.numpy())
    if not _broadcasts(powers.shape, shape):
        return False
    return all(
        _is_exact_multiple(old, new, in_piece(powers, shape, place))
        for (place, old), new in zip(placed_pieces(source), pieces(tensor), strict=True)
    )


def _broadcasts(powers: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether exponents of one shape are about a tensor of another."""
    try:
        return np.broadcast_shapes(powers, shape) == shape
    except ValueError:
        return False


def _is_exact_multiple(old: Array, new: Array, exponent: Array | int) -> bool:
    with np.errstate(invalid="ignore"):
        wanted = np.ldexp(old.astype(np.float64), exponent)  # in float64 no product is rounded
        got = new.astype(np.float64)
    if wanted.shape != got.shape:
        return False
    same = (wanted == got) & (np.signbit(wanted) == np.signbit(got)) | (np.isnan(wanted) & np.isnan(got))
    return bool(same.all())


def other_numbers(model: ir.Model, numbers: Sequence[ScaledNumber], original: ir.Model | None = None) -> list[str]:
    """Return the attributes that are not the original number times its power of two."""
    if not numbers:
        return []
    nodes = _by_name(model)
    before = _by_name(original) if original is not None else {}
    problems = []
    for each in numbers:
        if len(nodes.get(each.node, [])) != 1:
            problems.append(f"there is no one node `{each.node}`")
            continue
        held = _number(nodes[each.node][0], each.attribute)
        if held is None or math.ldexp(held, -each.exponent) != each.original:
            problems.append(f"`{each.attribute}` of `{each.node}` is not {each.original:g} times 2^{each.exponent}")
        was = [_number(node, each.attribute) for node in before.get(each.node, ())]
        if original is not None and was != [each.original]:
            problems.append(f"`{each.attribute}` of `{each.node}` is not {each.original:g} in the original")
    return problems


def _by_name(model: ir.Model) -> dict[str, list[ir.Node]]:
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        found.setdefault(node.name or "", []).append(node)
    return found


def _number(node: ir.Node, name: str) -> float | None:
    """Return the number in a node's attribute, or its default in ONNX's schema; None if neither has one."""
    if (attribute := node.attributes.get(name)) is not None:
        return attribute.as_float() if attribute.type is ir.AttributeType.FLOAT else None
    try:
        default = onnx.defs.get_schema(node.op_type, domain=node.domain).attributes[name].default_value
    except (onnx.defs.SchemaError, KeyError):
        return None
    return float(default.f) if default.type == onnx.AttributeProto.FLOAT else None


def lowered_constant(name: str, named: Named) -> ScaledConstant | None:
    """Return the claim on a constant, which may have been converted to half."""
    return named.get(name) or named.get(_LOWERED.sub("", name))


def missing_constants(mixed: ir.Model, certificate: Certificate) -> list[str]:
    """Return the certified constants that the model does not have."""
    constants = all_constants(mixed)
    held = {_LOWERED.sub("", name) for name in constants} | constants.keys()
    return [f"the model has no constant `{each.name}`" for each in certificate.constants if each.name not in held]


def other_halves(mixed: ir.Model, reference: ir.Model | None, named: Named) -> list[str]:
    """Return the certified constants that are not the reference's times their power of two, rounded to their type.

    Without a reference, those alone that must be powers of two.
    """
    before = all_constants(reference) if reference is not None else {}
    problems = []
    for name, value in all_constants(mixed).items():
        claimed, tensor = lowered_constant(name, named), value.const_value
        if claimed is None or tensor is None:
            continue
        if not claimed.source:
            problems += _other_power(value, claimed)
            continue
        if claimed.exponent and value.is_graph_input():
            problems.append(f"`{name}` is an input, which callers may replace")
        source = before[claimed.source].const_value if claimed.source in before else None
        if source is None or source.dtype is not ir.DataType.FLOAT or source.shape != tensor.shape:
            continue
        powers, shape = as_array(claimed.exponent), tuple(source.shape.numpy())
        if not _broadcasts(powers.shape, shape):
            problems.append(f"the exponents of `{name}` do not fit its shape")
            continue
        if not _is_rounded_multiple(source, tensor, powers):
            problems.append(f"`{name}` is not 2^{claimed.exponent} times the reference's `{claimed.source}`")
    return problems


def _is_rounded_multiple(source: ir.TensorProtocol, tensor: ir.TensorProtocol, powers: NDArray[np.int64]) -> bool:
    """Return whether a constant, half perhaps, is a float32 one times powers of two, rounded; piece by piece."""
    shape, got = tuple(source.shape.numpy()), tensor.numpy().reshape(-1)
    for place, piece in placed_pieces(source):
        with np.errstate(over="ignore", under="ignore"):
            exact = np.ldexp(piece.astype(np.float64), in_piece(powers, shape, place))
            wanted = exact.astype(got.dtype)
        if not np.array_equal(wanted, got[place], equal_nan=True) and not _is_floored(exact, got[place]):
            return False
    return True


def _is_floored(exact: Array, got: Array) -> bool:
    """Return whether one number that would be 0 in FP16 is FP16's smallest instead, as the plan makes an epsilon."""
    if got.size != 1 or got.dtype != np.float16:
        return False
    number, held = float(exact.reshape(-1)[0]), float(got.reshape(-1)[0])
    return 0 < abs(number) < FP16.smallest_subnormal and held == math.copysign(FP16.smallest_subnormal, number)
