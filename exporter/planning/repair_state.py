"""The graph that repair walks, and the nodes that it has pinned so far."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import onnx_ir as ir

from demi.calibration.graph_pieces import subgraphs_of
from demi.exporter.planning.constraints import Pins


@dataclass(slots=True)
class Repair:
    """Nodes pinned to single by simulation, with reasons, and observations on the way."""

    pinned: Pins = field(default_factory=dict)
    first_divergence: str | None = None
    """Origin of the first non-finite value, else of the first large error, if every allowed node is half."""
    cones: set[str] = field(default_factory=set)
    """Nodes pinned before decisions: they stay single, while the cut may free nodes pinned for their error."""
    settled: set[ir.Node] = field(default_factory=set)
    """Decisions that have been examined and cannot become safer."""


class Graph:
    """The main graph: its nodes in order, their producers, and the nodes inside their bodies.

    When errors are traced, a node inside a body counts as its outermost node: only main-graph tensors are readable.
    """

    def __init__(self, model: ir.Model) -> None:
        self.nodes = list(model.graph)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.outputs = [value.name or "" for value in model.graph.outputs]
        self.inside = {
            node: [inner.name or "" for graph in subgraphs_of(node) for inner in graph.all_nodes()]
            for node in self.nodes
        }
        self.reads = {node: _reads(node) for node in self.nodes}
        self._maker = {value: node for node in self.nodes for value in node.outputs}

    def makers(self, node: ir.Node) -> list[ir.Node]:
        """Return the producers of the tensors that a node reads, including outer values that its bodies read."""
        return [self._maker[value] for value in self.reads[node] if value in self._maker]

    def ancestors(self, nodes: Iterable[ir.Node], levels: int | None = None) -> set[ir.Node]:
        """Return the nodes and all nodes that feed them, at most `levels` levels up."""
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
        """Return every node that these outputs depend on, in graph order."""
        makers = [node for node in self.nodes if any(value.name in outputs for value in node.outputs)]
        return sorted(self.ancestors(makers), key=self.position.__getitem__)

    def outputs_after(self, node: ir.Node) -> set[str]:
        """Return the names of the graph outputs that depend on a node."""
        found: set[str] = set()
        reached = {node}
        for reader in self.nodes[self.position[node] :]:
            if reader in reached or any(maker in reached for maker in self.makers(reader)):
                reached.add(reader)
                found.update(value.name or "" for value in reader.outputs if value.is_graph_output())
        return found

    def switchable(self, node: ir.Node) -> list[str]:
        """Return the names that a plan may switch for this node: its own, and those of the nodes in its bodies."""
        return [node.name or "", *self.inside[node]]


def _reads(node: ir.Node) -> list[ir.Value]:
    own = [value for value in node.inputs if value is not None]
    inner = [
        value
        for graph in subgraphs_of(node)
        for inner in graph.all_nodes()
        for value in inner.inputs
        if value is not None
    ]
    return own + inner
