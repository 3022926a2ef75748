"""The cheapest assignment of half and single to nodes: one minimum s-t cut.

single = source side, half = sink side. For node i: s -> i costs what half costs (paid when i is half), i -> t what
single costs. A tensor that crosses is cast once in each direction, however many readers share the cast; that needs one
helper vertex for each direction, p the maker and c its readers:

    cast half -> single:  c -> a without limit,  a -> p with the cast's cost
    cast single -> half:  p -> b with the cast's cost,  b -> c without limit

Every finite cut is one assignment with exactly its cost, so the minimum cut is the optimum (max-flow min-cut; Boykov
and Kolmogorov, "An experimental comparison of min-cut/max-flow algorithms for energy minimization", 2004).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

UNLIMITED = 2**30
"""Capacity of an edge that may not be cut; SciPy's flows are 32-bit integers."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor between nodes: its producer, the readers that may be half, and the costs of its casts."""

    maker: int | None
    """The node that makes it; None when it is always single (a graph input, an operand that cannot be half)."""
    readers: tuple[int, ...]
    to_half: float
    to_single: float
    read_in_single: bool = False
    """True if it is always read in single as well: as a graph output, or by an operand that cannot be half."""


@dataclass(frozen=True, slots=True)
class CutProblem:
    """Costs of n nodes in either precision, the tensors between them, and the nodes that must be single or half."""

    half: Sequence[float]
    single: Sequence[float]
    crossings: Sequence[Crossing]
    must_single: frozenset[int] = frozenset()
    must_half: frozenset[int] = frozenset()

    def cost(self, is_half: Sequence[bool]) -> float:
        """Return the cost of one assignment; infinite when it violates a constraint."""
        if any(is_half[i] for i in self.must_single) or any(not is_half[i] for i in self.must_half):
            return float("inf")
        total = sum(self.half[i] if h else self.single[i] for i, h in enumerate(is_half))
        for tensor in self.crossings:
            made_half = tensor.maker is not None and is_half[tensor.maker]
            if made_half and (tensor.read_in_single or any(not is_half[c] for c in tensor.readers)):
                total += tensor.to_single
            if not made_half and any(is_half[c] for c in tensor.readers):
                total += tensor.to_half
        return total


def solve(problem: CutProblem) -> list[bool]:
    """Return for each node whether it is half in a cheapest assignment; among equals, the one with the most half nodes.

    Costs are scaled to integers: assignments within about 1e-8 of the total cost count as equal.
    """
    count = len(problem.half)
    source, sink = count, count + 1
    edges: list[tuple[int, int, float]] = []
    for node in range(count):
        edges.append((source, node, float("inf") if node in problem.must_single else problem.half[node]))
        edges.append((node, sink, float("inf") if node in problem.must_half else problem.single[node]))
    vertices = count + 2
    for tensor in problem.crossings:
        vertices = _add_crossing(edges, tensor, source, vertices)
    graph = _capacities(edges, vertices)
    flow = maximum_flow(graph, source, sink).flow
    residual = graph.astype(np.int64) - flow.astype(np.int64)
    residual.data[residual.data < 0] = 0
    residual.eliminate_zeros()
    reached = set(breadth_first_order(residual, source, directed=True, return_predecessors=False).tolist())
    return [node not in reached for node in range(count)]


def _add_crossing(edges: list[tuple[int, int, float]], tensor: Crossing, source: int, vertex: int) -> int:
    """Add the helper vertices and edges of one tensor; return the next free vertex."""
    maker = source if tensor.maker is None else tensor.maker
    if tensor.maker is not None and (tensor.readers or tensor.read_in_single):
        edges.append((vertex, maker, tensor.to_single))
        edges.extend((reader, vertex, float("inf")) for reader in tensor.readers)
        if tensor.read_in_single:
            edges.append((source, vertex, float("inf")))
        vertex += 1
    if tensor.readers:
        edges.append((maker, vertex, tensor.to_half))
        edges.extend((vertex, reader, float("inf")) for reader in tensor.readers)
        vertex += 1
    return vertex


def _capacities(edges: Sequence[tuple[int, int, float]], vertices: int) -> csr_array:
    """Return the edges as a matrix of integer capacities; the sum of finite ones stays below `UNLIMITED`."""
    costs = np.array([cost for _, _, cost in edges], dtype=np.float64)
    finite = np.isfinite(costs)
    total = float(costs[finite].sum())
    scale = (UNLIMITED - len(edges) - 1) / total if total > 0 else 1.0
    scale = min(scale, sys.float_info.max)
    scale = float(math.floor(scale)) if scale >= 1 else scale  # whole costs stay exact, and so do their ties
    capacities = np.where(finite, np.rint(np.where(finite, costs, 0.0) * scale), UNLIMITED).astype(np.int64)
    rows, columns = np.array([a for a, _, _ in edges]), np.array([b for _, b, _ in edges])
    matrix = csr_array((capacities, (rows, columns)), shape=(vertices, vertices), dtype=np.int64)
    matrix.data = np.minimum(matrix.data, UNLIMITED)
    return matrix.astype(np.int32)
