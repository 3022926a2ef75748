"""Exponents by channel, where one exponent for a whole tensor leaves numbers outside half's range.

The second step, after the scalar program: each tensor that still overflows, or of which much is subnormal in half, is
looked at channel by channel. Where its region (`regions`) allows it, each channel takes the power of two nearest to 1 with
which its largest number fits, its ordinary numbers are normal, and so are the weights around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from demi.calibration.observe import Probe, exposed
from demi.calibration.rescaling.certificate import Certificate, Powers, ScaledConstant, as_array, as_powers
from demi.calibration.sessions import session_for
from demi.calibration.weights import in_piece, placed_pieces
from demi.exporter.planning.constraints import margin_of
from demi.exporter.rescaling.apply import Changes, scale_constants
from demi.exporter.rescaling.equations import Operand
from demi.exporter.rescaling.regions import Layout, Region, region_of
from demi.float16 import FP16, HalfFormat
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds

ORDINARY = 6
"""Binades between a channel's largest number and the smallest normal half, where they can be had."""

HEADROOM = 2
"""Binades that a scaled channel keeps below the margin, where they can be had."""

LARGEST = 30.0
"""The largest exponent of a channel, as in the scalar program."""

MOST_REGIONS = 256
"""Regions that are looked at in one model."""

BINADES, LOWEST = 288, 150
"""Binades of float32 numbers, subnormal ones included, behind a place for zeros; that of 1 is number LOWEST + 1."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Span:
    """The least and the most exponent of each channel."""

    least: NDArray[np.int64]
    most: NDArray[np.int64]

    def narrowed(self, other: Span) -> Span:
        """Return what both allow; where that is nothing, the upper end of this one."""
        least = np.clip(other.least, self.least, self.most)
        return Span(least, np.clip(other.most, least, self.most))


def scale_channels(
    model: ir.Model, seeds: Sequence[str], feeds: Sequence[Feeds], fmt: HalfFormat = FP16
) -> Certificate | None:
    """Scale the regions of these tensors by channel, in place; returns what was changed, None where nothing was."""
    regions = regions_of(model, seeds)
    if not regions:
        return None
    largest = _largest_by_channel(model, regions, feeds)
    constants: dict[Operand, NDArray[np.int64]] = {}
    tensors: dict[str, Powers] = {}
    for region in regions:
        found = exponents_of(region, [largest[value.name or ""] for value in region.tensors], fmt)
        if found is None or not found.any():
            continue
        for sign, operands in ((1, region.made_by), (-1, region.taken_by)):
            for operand, layout in operands.items():
                constants[operand] = constants.get(operand, np.zeros((), np.int64)) + sign * found[layout]
        tensors |= {value.name or "": as_powers(found[layout]) for value, layout in region.tensors.items()}
    if not constants:
        return None
    changes = Changes(_names(model))
    scale_constants({operand: as_powers(exponents) for operand, exponents in constants.items()}, changes)
    return Certificate({name: each for name, each in tensors.items() if each}, tuple(changes.constants))


def exponents_of(region: Region, largest: Sequence[Numbers], fmt: HalfFormat) -> NDArray[np.int64] | None:
    """The exponents nearest to 0 with which a region fits half; None where some channel has none.

    `largest` is the largest magnitude in each channel of each of its tensors.
    """
    limit, normal = math.log2(fmt.max), math.log2(fmt.smallest_normal)
    tensors = [
        (np.log2(each, out=np.full_like(each, -np.inf), where=each > 0), math.log2(margin_of(value.producer())))
        for value, each in zip(region.tensors, largest, strict=True)
    ]
    made = [weights_by_channel(_constant(operand), each, region.channels) for operand, each in region.made_by.items()]
    taken = [weights_by_channel(_constant(operand), each, region.channels) for operand, each in region.taken_by.items()]
    needed = Span(
        _highest([high - limit for high, _ in taken], region.channels),
        _lowest(
            [*(limit - margin - high for high, margin in tensors), *(limit - high for high, _ in made)], region.channels
        ),
    )
    if (needed.least > needed.most).any():
        return None
    wished = Span(
        _highest(
            [*(normal + ORDINARY - high for high, _ in tensors), *(normal - low for _, low in made)], region.channels
        ),
        _lowest(
            [*(limit - HEADROOM - margin - high for high, margin in tensors), *(low - normal for _, low in taken)],
            region.channels,
        ),
    )
    as_is = [
        ((high + margin <= limit) & ((high >= normal + ORDINARY) | ~np.isfinite(high))).all()
        for high, margin in tensors
    ]
    if all(as_is):
        return None
    span = needed.narrowed(wished)
    return np.asarray(np.clip(0, span.least, span.most), np.int64)


def composed(first: Certificate, second: Certificate) -> Certificate:
    """The certificate of a model that was rescaled twice: what the second says, in terms of the original."""
    known = {each.name: each for each in first.constants}
    later = {each.name for each in second.constants}
    constants = [each for each in first.constants if each.name not in later]
    for each in second.constants:
        base = known.get(each.source, ScaledConstant(each.source, each.source, 0))
        constants.append(ScaledConstant(each.name, base.source, _sum(base.exponent, each.exponent)))
    both = {
        name: _sum(first.tensors.get(name, 0), second.tensors.get(name, 0)) for name in first.tensors | second.tensors
    }
    tensors = {name: powers for name, powers in both.items() if powers}
    return Certificate(tensors, tuple(constants), (*first.numbers, *second.numbers))


def _sum(one: Powers, other: Powers) -> Powers:
    return as_powers(as_array(one) + as_array(other))


def regions_of(model: ir.Model, seeds: Sequence[str]) -> list[Region]:
    """The regions of these tensors, each once."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    found: list[Region] = []
    inside: set[ir.Value] = set()
    for name in seeds:
        if len(found) == MOST_REGIONS:
            break
        value = values.get(name)
        if value is None or value in inside or (region := region_of(value)) is None:
            continue
        if inside.isdisjoint(region.tensors):
            found.append(region)
        inside.update(region.tensors)
    return found


def _largest_by_channel(model: ir.Model, regions: Sequence[Region], feeds: Sequence[Feeds]) -> Mapping[str, Numbers]:
    """The largest finite magnitude in each channel of the regions' tensors, over all sets of inputs."""
    layouts = {value.name or "": layout for region in regions for value, layout in region.tensors.items()}
    copy, names = exposed(model, layouts.keys())
    found = {name: np.zeros(layout.size) for name, layout in layouts.items()}
    with session_for(copy, settings=FAITHFUL) as session:
        probe = Probe(session, names)
        for each in feeds:
            for values in probe.read(each):
                for name, array in values.items():
                    found[name] = np.maximum(found[name], _by_channel(np.abs(array), layouts[name]))
    return found


def _by_channel(numbers: NDArray[np.floating], layout: Layout) -> Numbers:
    """The largest finite number of each channel, in the order of the channels."""
    whole = layout.reshape((1,) * (numbers.ndim - layout.ndim) + layout.shape)
    others = tuple(axis for axis, size in enumerate(whole.shape) if size == 1)
    highest = np.where(np.isfinite(numbers), numbers, 0).max(axis=others, initial=0).reshape(-1)
    found = np.empty(layout.size)
    found[layout.reshape(-1)] = highest
    return found


def weights_by_channel(tensor: ir.TensorProtocol, layout: Layout, channels: int) -> tuple[Numbers, Numbers]:
    """The exponents of the largest and of the ordinary (median) weights of each channel; -inf and inf for zeros.

    The largest one has its fraction, the median is rounded down. Reads the weight piece by piece.
    """
    shape = tuple(tensor.shape.numpy())
    highest = np.zeros(channels, np.float32)
    counts = np.zeros((channels, BINADES), np.int64)
    for place, piece in placed_pieces(tensor):
        channel, sizes = np.broadcast_to(in_piece(layout, shape, place), piece.shape), np.abs(piece)
        np.maximum.at(highest, channel, sizes)
        binade = np.where(sizes > 0, np.frexp(sizes)[1] + LOWEST, 0)
        counts += np.bincount(channel * BINADES + binade, minlength=counts.size).reshape(counts.shape)
    half = (counts.sum(axis=1) + 1) // 2
    median = (counts.cumsum(axis=1) >= half[:, None]).argmax(axis=1)
    with np.errstate(divide="ignore"):
        return np.log2(highest.astype(np.float64)), np.where(median > 0, median - LOWEST - 1.0, np.inf)


def _constant(operand: Operand) -> ir.TensorProtocol:
    node, position = operand
    value = node.inputs[position]
    assert value is not None
    assert value.const_value is not None
    return value.const_value


def _highest(bounds: Sequence[Numbers], channels: int) -> NDArray[np.int64]:
    """The smallest exponents above all of these bounds."""
    return np.asarray(np.ceil(np.max([*bounds, np.full(channels, -LARGEST)], axis=0)), np.int64)


def _lowest(bounds: Sequence[Numbers], channels: int) -> NDArray[np.int64]:
    """The largest exponents below all of these bounds."""
    return np.asarray(np.floor(np.min([*bounds, np.full(channels, LARGEST)], axis=0)), np.int64)


def _names(model: ir.Model) -> set[str]:
    found = {name for graph in (model.graph, *model.graph.subgraphs()) for name in graph.initializers}
    for node in model.graph.all_nodes():
        found |= {node.name or ""} | {value.name or "" for value in (*node.inputs, *node.outputs) if value is not None}
    return found | {value.name or "" for value in model.graph.inputs}
