"""Places for a Mul: the edges of a graph whose scale could bring an island into half's range."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx_ir as ir

from demi.exporter.rescaling.classes import classes_of
from demi.exporter.rescaling.equations import Edge, System, is_constant, is_tensor, value_at
from demi.exporter.rescaling.limits import Limits
from demi.exporter.rescaling.rules import row_of
from demi.exporter.rescaling.solve import fits_alone


def repairable(islands: Sequence[ir.Node], system: System, limits: Limits) -> list[ir.Node]:
    """The islands that a Mul in front of them could help: the others ask for two things at once of one operand.

    An epsilon that would vanish where the variance that it is added to fits is such a contradiction.
    """
    if not islands:
        return []
    classes, bounds = classes_of(system, system.edges), limits.by_node()
    return [node for node in islands if fits_alone(bounds[node], classes)]


def edges_near(islands: Sequence[ir.Node], system: System, most: int) -> list[Edge]:
    """The edges that a Mul could scale with most effect, `most` at the most, nearest to these nodes first.

    Those into the islands, and out of the model; then, breadth first around them, those that meet a number alone (an
    epsilon keeps its size while a variance grows), and those where something pinned ends.
    """
    seen, queue = set(islands), deque(islands)
    found: dict[Edge, None] = {edge: None for node in islands for edge in _edges(node, system)}
    while queue and len(found) < most:
        node = queue.popleft()
        found |= {edge: None for edge in _edges(node, system) if _meets_number(node) or _is_pinned(edge, node)}
        for other in _around(node):
            if other not in seen:
                seen.add(other)
                queue.append(other)
    return list(found)[:most]


def _edges(node: ir.Node, system: System) -> Iterator[Edge]:
    """The edges into a node, and from it out of the model."""
    places: Collection[Edge] = [*((node, i) for i in range(len(node.inputs))), *node.outputs]
    return (edge for edge in places if edge in system.edges)


def _meets_number(node: ir.Node) -> bool:
    return any(
        value is not None and value.const_value is not None and value.const_value.size == 1 for value in node.inputs
    )


def _is_pinned(edge: Edge, reader: ir.Node) -> bool:
    """Return whether the tensor or its reader keeps its scale whatever the others do."""
    if isinstance(edge, ir.Value):
        return True
    maker = value_at(edge).producer()
    return maker is None or row_of(maker) is None or row_of(reader) is None


def _around(node: ir.Node) -> Iterable[ir.Node]:
    """The nodes that make what a node reads, and that read what it makes or read the same."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and is_tensor(value) and not is_constant(value):
            if (maker := value.producer()) is not None:
                yield maker
            yield from (use.node for use in value.uses())
