"""The graph that repair walks, and what it has pinned so far."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import onnx_ir as ir

from demi.exporter.planning.constraints import Pins


@dataclass(slots=True)
class Repair:
    """The nodes pinned to single by simulation, with reasons, and what was seen on the way."""

    pinned: Pins = field(default_factory=dict)
    first_divergence: str | None = None
    """Where the first non-finite value (else the first large error) arises when everything allowed is half."""
    cones: set[str] = field(default_factory=set)
    """Nodes on the way to decisions: they stay single, while the cut may take back what was pinned for its error."""
    settled: set[ir.Node] = field(default_factory=set)
    """Decisions that have been looked at, and cannot become safer."""


class Graph:
    """The main graph's nodes in order, what feeds what, and which nodes live inside which (loop bodies).

    A node inside a body counts as its outermost node when errors are traced, since only main-graph tensors are seen.
    """

    def __init__(self, model: ir.Model) -> None:
        self.nodes = list(model.graph)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.outputs = [value.name or "" for value in model.graph.outputs]
        self.inside = {
            node: [inner.name or "" for graph in _bodies(node) for inner in graph.all_nodes()] for node in self.nodes
        }
        self.reads = {node: _reads(node) for node in self.nodes}
        self._maker = {value: node for node in self.nodes for value in node.outputs}

    def makers(self, node: ir.Node) -> list[ir.Node]:
        """The nodes whose tensors it reads, outer values of its bodies included."""
        return [self._maker[value] for value in self.reads[node] if value in self._maker]

    def ancestors(self, nodes: Iterable[ir.Node], levels: int | None = None) -> set[ir.Node]:
        """Everything that feeds the nodes, themselves included, up to so many levels of nodes that touch floats."""
        found: set[ir.Node] = set(nodes)
        frontier = [(node, 0) for node in found]
        while frontier:
            node, level = frontier.pop(0)
            if levels is not None and level >= levels:
                continue
            for maker in self.makers(node):
                if maker not in found:
                    found.add(maker)
                    frontier.append((maker, level + 1))
        return found

    def feeding(self, outputs: AbstractSet[str]) -> list[ir.Node]:
        """Every node that the outputs of these names depend on, in order."""
        makers = [node for node in self.nodes if any(value.name in outputs for value in node.outputs)]
        return sorted(self.ancestors(makers), key=self.position.__getitem__)

    def outputs_after(self, node: ir.Node) -> set[str]:
        """The graph outputs that follow from a node."""
        found: set[str] = set()
        reached = {node}
        for reader in self.nodes[self.position[node] :]:
            if reader in reached or any(maker in reached for maker in self.makers(reader)):
                reached.add(reader)
                found.update(value.name or "" for value in reader.outputs if value.is_graph_output())
        return found

    def switchable(self, node: ir.Node) -> list[str]:
        """The names a plan may switch for this node: its own, and those of the nodes in its bodies."""
        return [node.name or "", *self.inside[node]]


def _bodies(node: ir.Node) -> list[ir.Graph]:
    bodies: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        elif attribute.type is ir.AttributeType.GRAPHS:
            bodies.extend(attribute.as_graphs())
    return bodies


def _reads(node: ir.Node) -> list[ir.Value]:
    own = [value for value in node.inputs if value is not None]
    inner = [
        value for graph in _bodies(node) for inner in graph.all_nodes() for value in inner.inputs if value is not None
    ]
    return own + inner
