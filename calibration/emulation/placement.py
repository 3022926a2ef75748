"""Where a node goes that reads a value: right behind where the value is made, so that every scope that sees it can."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def place_behind(value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Insert nodes, in order, behind the node that makes `value`; at the top of its graph for an input or a weight."""
    producer, graph = value.producer(), value.graph
    if producer is not None:
        assert producer.graph is not None
        producer.graph.insert_after(producer, nodes)
    elif graph is not None and len(graph):
        graph.insert_before(graph[0], nodes)
    elif graph is not None:
        graph.extend(nodes)
