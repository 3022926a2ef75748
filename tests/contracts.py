"""Contracts of the passes: what `prepare` and `tidy` ensure, checked on every model that the tests put through them."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir


def require_prepared(model: ir.Model) -> None:
    """Raise AssertionError unless a model is as `prepare` leaves it: flat, named, unique and sorted."""
    assert not model.functions, "a local function is left"
    graphs = (model.graph, *model.graph.subgraphs())
    nodes = list(model.graph.all_nodes())
    constants = [node.name for node in nodes if node.op_type == "Constant" and not node.outputs[0].is_graph_output()]
    assert not constants, f"Constant nodes are left: {constants}"
    values = dict.fromkeys(value for graph in graphs for value in (*graph.inputs, *graph.initializers.values()))
    values |= dict.fromkeys(
        value for node in nodes for value in node.outputs if value.uses() or value.is_graph_output()
    )
    for kind, names in (("node", [node.name for node in nodes]), ("value", [value.name for value in values])):
        assert all(names), f"a {kind} has no name"
        assert max(Counter(names).values(), default=1) == 1, f"two {kind}s share a name"
    for graph in graphs:
        _require_sorted(graph)


def require_tidy(model: ir.Model) -> None:
    """Raise AssertionError unless a model is as `tidy` leaves it: everything is read, and no Cast keeps its type."""
    for node in model.graph.all_nodes():
        used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
        assert used, f"`{node.name}` is not read"
        if node.op_type == "Cast" and node.inputs[0] is not None and not node.outputs[0].is_graph_output():
            assert node.inputs[0].dtype is None or node.inputs[0].dtype is not node.outputs[0].dtype, (
                f"`{node.name}` keeps its type"
            )
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in graph.initializers.items():
            assert value.uses() or value.is_graph_output() or value.is_graph_input(), f"`{name}` is not read"


def _require_sorted(graph: ir.Graph) -> None:
    """Raise AssertionError unless every node of a graph comes after those of the same graph that it reads."""
    seen: set[ir.Node] = set()
    for node in graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        late = [maker.name for maker in makers if maker is not None and maker.graph is graph and maker not in seen]
        assert not late, f"`{node.name}` comes before `{late[0]}`"
        seen.add(node)
