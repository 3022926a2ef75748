"""Ranges inside the bodies of If, Loop and Scan, whose tensors no model can have as outputs.

A copy of the model hands them out: a body gets one more output for each of its tensors, which Loop and Scan stack over
their turns, and If takes from the branch that ran. Out of a body inside of a body they pass through both. All that a body
hands out is held in memory together, so that sizes are read first, and tensors follow as many at a time as fit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from demi.calibration.graph_pieces import subgraphs_of
from demi.calibration.profile import Range, range_of
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.errors import DemiError
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 28
"""Bytes of body tensors that one run hands out; a larger one is not looked at."""

PREFIX = "demi/inside/"
"""Beginning of the names of what a body hands out."""

_STACKING = frozenset({"Loop", "Scan"})


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor inside a body: the way to it, and its name."""

    way: tuple[tuple[str, int], ...]
    """The operators around it, the outermost first, each with the number of the body among its own."""
    tensor: str


def observe_bodies(model: ir.Model, samples: Samples) -> dict[str, Range]:
    """Return the ranges of float32 tensors in bodies over all samples, by name; what cannot be handed out is left out.

    Those in bodies of the main graph's operators are read together, and each body inside of a body by itself: where
    shapes change from turn to turn in one of them, the others are known nevertheless.
    """
    together: dict[tuple[tuple[str, int], ...], list[_Place]] = {}
    for place in _places(model.graph):
        together.setdefault(place.way if len(place.way) > 1 else (), []).append(place)
    found: dict[str, Range] = {}
    for places in together.values():
        found |= _observed(model, places, samples)
    return found


def body_elements(model: ir.Model, feeds: Feeds) -> dict[str, int]:
    """Return the elements of every tensor in bodies in one run, over all turns; bodies that cannot be read are left out."""
    together: dict[tuple[tuple[str, int], ...], list[_Place]] = {}
    for place in _places(model.graph, kinds=None):
        together.setdefault(place.way, []).append(place)
    found: dict[str, int] = {}
    for places in together.values():
        try:
            found |= _sizes(model, places, [feeds])
        except (DemiError, ValueError) as error:
            logger.info("the sizes in a body are not known: %s", error)
    return found


def _observed(model: ir.Model, places: Sequence[_Place], samples: Samples) -> dict[str, Range]:
    try:
        sizes = _sizes(model, places, samples.feeds)
        found: dict[str, Range] = {}
        for chunk in _chunks(places, sizes):
            found |= _ranges(model, chunk, samples)
        return found
    except (DemiError, ValueError) as error:  # tensors whose shape differs from turn to turn, say
        logger.info("the ranges in bodies are not known: %s", error)
        return {}


def _places(
    graph: ir.Graph,
    way: tuple[tuple[str, int], ...] = (),
    kinds: AbstractSet[ir.DataType] | None = frozenset({ir.DataType.FLOAT}),
) -> Iterator[_Place]:
    """Yield the tensors that the bodies of a graph's nodes are given and make, and those of bodies inside.

    Only those of `kinds`, by default float32; None stands for all.
    """
    for node in graph:
        if node.op_type not in ("If", *_STACKING) or {"scan_output_axes", "scan_output_directions"} & set(
            node.attributes
        ):
            continue
        for number, body in enumerate(subgraphs_of(node)):
            inside = (*way, (node.name or "", number))
            made = (value for inner in body for value in inner.outputs)
            for value in (*body.inputs, *made):
                if value.name and _is_of(value, kinds):
                    yield _Place(inside, value.name)
            yield from _places(body, inside, kinds)


def _is_of(value: ir.Value, kinds: AbstractSet[ir.DataType] | None) -> bool:
    if kinds is None:
        return not isinstance(value.type, ir.SequenceType | ir.OptionalType)
    return isinstance(value.type, ir.TensorType) and value.dtype in kinds


def _sizes(model: ir.Model, places: Sequence[_Place], sets: Sequence[Feeds]) -> Mapping[str, int]:
    """Return the most elements of each tensor in a run, all turns together."""
    copy, names = _handing_out(model, places, sizes=True)
    found: dict[str, int] = {}
    with session_for(copy, settings=FAITHFUL) as session:
        for feeds in sets:
            for name, array in session.run(feeds, names).items():
                tensor = name.removeprefix(PREFIX)
                found[tensor] = max(found.get(tensor, 0), int(np.sum(array)))
    return found


def _chunks(places: Sequence[_Place], sizes: Mapping[str, int]) -> Iterator[list[_Place]]:
    """Yield the tensors in groups of at most `MOST_BYTES`."""
    chunk: list[_Place] = []
    total = 0
    for place in places:
        size = 4 * sizes.get(place.tensor, 0)
        if not 0 < size <= MOST_BYTES:
            continue
        if total + size > MOST_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(place)
        total += size
    if chunk:
        yield chunk


def _ranges(model: ir.Model, places: Sequence[_Place], samples: Samples) -> dict[str, Range]:
    copy, names = _handing_out(model, places, sizes=False)
    found: dict[str, Range] = {}
    with session_for(copy, settings=FAITHFUL) as session:
        for feeds in samples.feeds:
            for name, array in session.run(feeds, names).items():
                if array.size:
                    tensor = name.removeprefix(PREFIX)
                    found[tensor] = found.get(tensor, Range()).merge(range_of(array))
    return found


def _handing_out(model: ir.Model, places: Sequence[_Place], *, sizes: bool) -> tuple[ir.Model, list[str]]:
    """Return a copy whose outputs have the tensors, or the numbers of their elements, and the names of those outputs."""
    copy = model.clone()
    nodes = {node.name or "": node for node in copy.graph.all_nodes()}
    names = []
    for place in places:
        handed: ir.Value | None = None
        for depth, (operator, number) in reversed(list(enumerate(place.way))):
            handed = _out_of(nodes[operator], number, place.tensor, handed, f"{PREFIX}{depth}/", sizes=sizes)
        assert handed is not None
        handed.name = PREFIX + place.tensor
        copy.graph.outputs.append(handed)
        names.append(handed.name)
    return copy, names


def _out_of(node: ir.Node, number: int, tensor: str, handed: ir.Value | None, prefix: str, *, sizes: bool) -> ir.Value:
    """Hand a tensor out of one of an operator's bodies, or what a body inside of it has handed out; return the new output."""
    for each, body in enumerate(subgraphs_of(node)):
        if each == number and handed is not None:
            body.outputs.append(handed)
            continue
        inner = _read(body, tensor, sizes) if each == number else _nothing(sizes)
        inner.name, inner.outputs[0].name = f"{prefix}{each}/{tensor}/node", f"{prefix}{each}/{tensor}"
        body.append(inner)
        body.outputs.append(inner.outputs[0])
    node.resize_outputs(len(node.outputs) + 1)
    outer = node.outputs[-1]
    outer.name = f"{prefix}{tensor}"
    outer.type = ir.TensorType(ir.DataType.INT64 if sizes else ir.DataType.FLOAT)
    return outer


def _read(body: ir.Graph, tensor: str, sizes: bool) -> ir.Node:
    """Return a node that makes what is handed out of a tensor."""
    made = (value for node in body for value in node.outputs)
    value = next(each for each in (*body.inputs, *made) if each.name == tensor)
    node = ir.node("Size" if sizes else "Identity", [value])
    node.outputs[0].type = ir.TensorType(ir.DataType.INT64 if sizes else ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(()) if sizes else value.shape
    return node


def _nothing(sizes: bool) -> ir.Node:
    """Return a node for the branch that does not have the tensor: a size of 0, or no elements."""
    array = np.array(0, np.int64) if sizes else np.zeros(0, np.float32)
    node = ir.node("Constant", [], attributes={"value": ir.tensor(array)})
    node.outputs[0].type = ir.TensorType(ir.DataType.INT64 if sizes else ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(array.shape)
    return node
