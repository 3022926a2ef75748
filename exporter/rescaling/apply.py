"""Carrying a solution out: constants and epsilons multiplied by powers of two, and a Mul where an edge asks for one.

A power of two changes the exponent bits of a float32 number and no others. Constants in other files are scaled when they
are read, one at a time, so that a model of any size passes through.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from demi.calibration.graph_pieces import place_behind
from demi.calibration.rescaling.certificate import (
    Certificate,
    Channels,
    Powers,
    ScaledConstant,
    ScaledNumber,
    as_array,
)
from demi.calibration.weights import StreamedTensor, in_piece, placed_pieces
from demi.exporter.rescaling.equations import Operand, System, value_at
from demi.exporter.rescaling.rules import number_of
from demi.tensors import Array

KNOWN_LOSS = "demi/loss"
"""Prefix of the keys under which a value caches the loss of its numbers in half (`calibration.weights.constant_loss`)."""


@dataclass(slots=True)
class Changes:
    """The certificate's entries so far, and the names that are taken."""

    taken: set[str]
    constants: list[ScaledConstant] = field(default_factory=list)
    numbers: list[ScaledNumber] = field(default_factory=list)

    def fresh(self, name: str) -> str:
        """A name that nothing in the model has, and none of its later names."""
        candidate, count = name, 1
        while candidate in self.taken:
            candidate, count = f"{name}_{count}", count + 1
        self.taken.add(candidate)
        return candidate


def apply(system: System, exponents: tuple[int, ...]) -> Certificate:
    """Scale the system's model in place by the exponents of its variables; returns what was changed.

    Before: a prepared model, and exponents with which every equation holds. After: the same nodes, with other constants
    and numbers, and a Mul by a power of two behind each tensor that some of its readers want in another scale.
    """
    changes = Changes(_names(system))
    scale_constants({operand: exponents[variable] for operand, variable in system.constants.items()}, changes)
    for (node, name), variable in system.attributes.items():
        if exponents[variable]:
            _scale_number(node, name, exponents[variable], changes)
    products = _multiply_edges(system, exponents, changes)
    tensors: dict[str, Powers] = {value.name or "": exponents[v] for value, v in system.tensors.items() if exponents[v]}
    return Certificate(tensors | products, tuple(changes.constants), tuple(changes.numbers))


def _names(system: System) -> set[str]:
    operands = (*system.constants, *system.edges, *system.attributes)
    nodes = {operand[0] for operand in operands if isinstance(operand, tuple)}
    values = {value.name or "" for value in system.tensors}
    values |= {value.name or "" for node in nodes for value in (*node.inputs, *node.outputs) if value is not None}
    return values | {node.name or "" for node in nodes}


def scale_constants(powers: Mapping[Operand, Powers], changes: Changes) -> None:
    """Each constant in the scales its readers want: in place where all want one, else as copies beside it."""
    readers: defaultdict[ir.Value, dict[Powers, list[Operand]]] = defaultdict(dict)
    for (node, position), exponent in powers.items():
        value = node.inputs[position]
        assert value is not None
        readers[value].setdefault(exponent, []).append((node, position))
    for value, by_exponent in readers.items():
        everybody = sum(len(operands) for operands in by_exponent.values()) == len(value.uses())
        only = everybody and len(by_exponent) == 1 and not value.is_graph_output()
        for exponent, operands in by_exponent.items():
            if exponent and only:
                assert value.const_value is not None
                value.const_value = scaled(value.const_value, exponent)
                for key in [key for key in value.meta if key.startswith(KNOWN_LOSS)]:
                    del value.meta[key]
                changes.constants.append(ScaledConstant(value.name or "", value.name or "", exponent))
            elif exponent:
                copy = _copy(value, exponent, changes)
                for node, position in operands:
                    node.replace_input_with(position, copy)


def _copy(value: ir.Value, exponent: Powers, changes: Changes) -> ir.Value:
    assert value.graph is not None
    assert value.const_value is not None
    name = changes.fresh(f"{value.name}_times_2_{_written(exponent)}")
    tensor = scaled(value.const_value, exponent, name)
    copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
    value.graph.register_initializer(copy)
    changes.constants.append(ScaledConstant(name, value.name or "", exponent))
    return copy


def _written(exponent: Powers) -> str:
    """An exponent in a name: `minus9`, `4`, `each`."""
    if isinstance(exponent, Channels):
        return "each"
    return f"minus{-exponent}" if exponent < 0 else str(exponent)


def _scale_number(node: ir.Node, name: str, exponent: int, changes: Changes) -> None:
    original = number_of(node, name)
    assert original is not None
    if original:
        node.attributes[name] = ir.AttrFloat32(name, float(np.ldexp(np.float32(original), exponent)))
        changes.numbers.append(ScaledNumber(node.name or "", name, original, exponent))


def _multiply_edges(system: System, exponents: tuple[int, ...], changes: Changes) -> dict[str, Powers]:
    """A Mul for each tensor and scale that readers want beside its own; returns the exponents of their results."""
    made: dict[tuple[ir.Value, int], ir.Value] = {}
    found: dict[str, Powers] = {}
    for edge, (product, factor) in system.edges.items():
        if not (exponent := exponents[factor]):
            continue
        value = value_at(edge)
        if isinstance(edge, ir.Value):
            _bring_back(value, exponent, changes)
            continue
        if (value, exponent) not in made:
            made[value, exponent] = _multiplied(value, exponent, changes)
        edge[0].replace_input_with(edge[1], made[value, exponent])
        if exponents[product]:
            found[made[value, exponent].name or ""] = exponents[product]
    return found


def _multiplied(value: ir.Value, exponent: int, changes: Changes) -> ir.Value:
    """A Mul of a tensor by a power of two, right behind it; returns the product."""
    stem = changes.fresh(f"{value.name}_times_2_{_written(exponent)}")
    power = changes.fresh(f"{stem}_factor")
    tensor = ir.tensor(np.ldexp(np.float32(1.0), exponent), name=power)
    factor = ir.Value(name=power, shape=ir.Shape(()), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    node = ir.node("Mul", [value, factor], name=changes.fresh(f"{stem}_mul"))
    result = node.outputs[0]
    result.name, result.type, result.shape = stem, value.type, value.shape
    place_behind(value, [node])
    assert node.graph is not None
    node.graph.register_initializer(factor)
    changes.constants.append(ScaledConstant(power, "", exponent))
    return result


def _bring_back(value: ir.Value, exponent: int, changes: Changes) -> None:
    """A Mul between a scaled tensor and the output of the model that it is: the output keeps its name, the tensor does not."""
    result = _multiplied(value, exponent, changes)
    value.name, result.name = result.name, value.name
    maker = result.producer()
    assert maker is not None
    assert maker.graph is not None
    outputs = maker.graph.outputs
    for position, output in enumerate(outputs):
        if output is value:
            outputs[position] = result


def scaled(tensor: ir.TensorProtocol, exponent: Powers, name: str = "") -> ir.TensorProtocol:
    """A float32 tensor times 2^exponent, which changes its exponent bits alone; read anew each time it is needed.

    Raises ValueError, when it is read, for numbers that would become subnormal or infinite.
    """
    shape = tuple(tensor.shape.numpy())

    def parts() -> Iterator[Array]:
        for place, piece in placed_pieces(tensor):
            by = in_piece(as_array(exponent), shape, place) if isinstance(exponent, Channels) else exponent
            yield shifted(piece, by)

    streamed = StreamedTensor(parts, shape, name or tensor.name)
    if isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):
        return streamed
    return ir.Tensor(streamed.numpy(), name=name or tensor.name)


_EXPONENT = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


def shifted(numbers: Array, exponent: int | NDArray[np.int64]) -> Array:
    """Float32 numbers with `exponent`, which broadcasts, added to their exponent bits; zeros, infinities and NaN as they are.

    Raises ValueError where the result would be subnormal or infinite, or a number is subnormal already.
    """
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32).reshape(numbers.shape)
    held = (bits & _EXPONENT) >> np.uint32(23)
    ordinary = (held != 255) & ((bits & _MAGNITUDE) != 0)
    moved = held.astype(np.int64) + exponent
    if np.any(ordinary & ((moved < 1) | (moved > 254) | (held == 0))):
        by = exponent if isinstance(exponent, int) else f"({exponent.min()}..{exponent.max()})"
        raise ValueError(f"times 2^{by} leaves the normal numbers of float32")
    step = (np.asarray(exponent, np.int64) << 23).astype(np.uint32)  # modulo 2^32: a negative one borrows
    return np.where(ordinary, bits + step, bits).view(np.float32)
