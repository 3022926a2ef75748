"""Repair what does not add up: simulate, blame, repair, prune.

Overflow, cancellation, wrong indices and decisions are not small independent errors. The plan is simulated beside FP32,
tensor by tensor. A node is to blame when the error is born there: large at its output, small at its inputs. If it is
half it becomes single; if it is single already, its inputs must be more exact, so the half nodes that feed it become
single, from further up each time it is blamed again. What turns out not to be needed goes back to half at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from calibration.judge import Judge, TensorError
from demi.compare import Comparison
from demi.plan import Reason
from demi.tensors import Array
from exporter import schemas
from exporter.constraints import Pins

ROUNDS = 60
"""Most rounds of blame; each pins at least one node."""

JUMP = 4.0
"""An error is born where it is this many times larger than at the inputs."""

ENOUGH = 0.5
"""The share of the budget that repaired plans aim for; what lies between is left to the cut."""

DECISION_MARGIN = 4.0
"""A decision is safe when the runner-up is this many times the error away."""


@dataclass(slots=True)
class Repair:
    """The nodes pinned to single by simulation, with reasons, and what was seen on the way."""

    pinned: Pins = field(default_factory=dict)
    first_divergence: str | None = None
    """Where the first non-finite value (else the first large error) arises when everything allowed is half."""
    cones: set[str] = field(default_factory=set)
    """Nodes on the way to decisions: never pruned."""


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

    def switchable(self, node: ir.Node) -> list[str]:
        """The names a plan may switch for this node: its own, and those of the nodes in its bodies."""
        return [node.name or "", *self.inside[node]]


def repair(graph: Graph, judge: Judge, candidates: AbstractSet[str], ordinary: float = 0.0) -> Repair:
    """Pin nodes among `candidates` until the emulated outputs are within `ENOUGH` of the budget, or no blame is left.

    An error of up to `ordinary` (relative L2) is what any rounding makes: nobody is blamed for it, it is the cut's
    business, however tight the budget.
    """
    result = Repair()
    blamed: dict[ir.Node, int] = {}
    for _ in range(ROUNDS):
        half = candidates - result.pinned.keys()
        comparison = judge.compare(half)
        if judge.load(comparison) <= ENOUGH or not half:
            break
        tensors = [value.name or "" for node in graph.nodes for value in node.outputs]
        errors = judge.tensor_errors(half, tensors)
        if errors is None:
            if not _pin_before_integers(graph, half, result):
                break
            continue
        result.first_divergence = result.first_divergence or first_divergence(graph, errors)
        guilty = blame(graph, errors, comparison, judge, ordinary)
        if not _pin(graph, guilty, errors, half, blamed, result):
            break
    protect_decisions(graph, judge, candidates, result)
    return result


def blame(
    graph: Graph, errors: dict[str, TensorError], comparison: Comparison, judge: Judge, ordinary: float = 0.0
) -> list[ir.Node]:
    """The nodes where the error of the offending outputs is born, in graph order.

    Thresholds fall from the budget itself until a birth is found: a small error may be born early and grow later.
    """
    bad = {diff.output for diff in comparison.outputs if diff.relative_l2 > ENOUGH * judge.scale(diff.output)}
    scale = min((judge.scale(output) for output in bad), default=1e-2)
    makers = [node for node in graph.nodes if any(value.name in bad for value in node.outputs)]
    suspects = sorted(graph.ancestors(makers), key=graph.position.__getitem__)
    for threshold in (max(scale, ordinary), max(scale / 4, ordinary)):
        born = [node for node in suspects if _is_born(graph, node, errors, threshold)]
        if born:
            return born
    return []


def _is_born(graph: Graph, node: ir.Node, errors: dict[str, TensorError], threshold: float) -> bool:
    after = max((errors[value.name].relative for value in node.outputs if value.name in errors), default=0.0)
    before = max(
        (errors[value.name or ""].relative for value in graph.reads[node] if value.name in errors), default=0.0
    )
    if math.isinf(after):
        return not math.isinf(before)
    return after > threshold and after > JUMP * before


def _pin(
    graph: Graph,
    guilty: Sequence[ir.Node],
    errors: dict[str, TensorError],
    half: AbstractSet[str],
    blamed: dict[ir.Node, int],
    result: Repair,
) -> bool:
    """Make the guilty nodes single, or what feeds those that are; whether anything changed."""
    before = len(result.pinned)
    for node in guilty:
        own = [name for name in graph.switchable(node) if name in half]
        if own:
            evidence = _evidence(graph, node, errors)
            result.pinned.update(dict.fromkeys(own, (Reason.ERROR_BORN, evidence)))
            continue
        blamed[node] = blamed.get(node, 0) + 1
        feeding = _feeding(graph, node, half, 2 ** (blamed[node] - 1))
        for name in feeding:
            result.pinned.setdefault(
                name, (Reason.FEEDS_MAGNIFIER, f"feeds `{node.name}`, which magnifies what half loses")
            )
    return len(result.pinned) > before


def _feeding(graph: Graph, node: ir.Node, half: AbstractSet[str], levels: int) -> list[str]:
    """The half nodes nearest before a node: at least one level of them, and up to `levels`."""
    for reach in (levels, *(levels * 2**k for k in range(1, 12))):
        found = [name for maker in graph.ancestors([node], reach) for name in graph.switchable(maker) if name in half]
        if found:
            return found
    return []


def _pin_before_integers(graph: Graph, half: AbstractSet[str], result: Repair) -> bool:
    """When the run itself fails, an index came out wrong: make everything before float-to-integer nodes single.

    Where there is no such node, everything that is left becomes single. Returns whether anything changed.
    """
    decisions = [node for node in graph.nodes if _decides(node)]
    before = [name for node in graph.ancestors(decisions) for name in graph.switchable(node) if name in half]
    for name in before or half:
        result.pinned[name] = (Reason.SELECTION, "feeds an index that comes out of bounds when it is rounded")
        result.cones.add(name)
    return bool(before or half)


def _evidence(graph: Graph, node: ir.Node, errors: dict[str, TensorError]) -> str:
    worst = max(
        (value for value in node.outputs if value.name in errors), key=lambda value: errors[value.name or ""].relative
    )
    error = errors[worst.name or ""].relative
    before = max(
        (errors[value.name or ""].relative for value in graph.reads[node] if value.name in errors), default=0.0
    )
    seen = _broken(worst) if math.isinf(error) else f"relative error {error:.2g}"
    return f"{seen} on `{worst.name}`, {before:.2g} at its inputs"


def first_divergence(graph: Graph, errors: dict[str, TensorError]) -> str | None:
    """Where the first non-finite value arises, else where the first error beyond 10% does."""
    for limit in (math.inf, 0.1):
        for node in graph.nodes:
            for value in node.outputs:
                if value.name in errors and errors[value.name].relative >= limit:
                    words = _broken(value) if math.isinf(limit) else "an error beyond 10%"
                    return f"{words} first arises on `{value.name}`, made by {node.op_type} `{node.name}`"
    return None


def _broken(value: ir.Value) -> str:
    """What an infinite error means: integers are not rounded, they are others or of another number."""
    return "NaN or infinity" if schemas.is_float(value) else "another answer than FP32's"


# --- decisions ------------------------------------------------------------------------------------------------------


def protect_decisions(graph: Graph, judge: Judge, candidates: AbstractSet[str], result: Repair) -> None:
    """Pin everything before a decision that rounding could change: a close argmax, a truncation near a whole number.

    A decision is safe when the nearest other answer is `DECISION_MARGIN` times the emulated error away on all samples.
    """
    decisions = [node for node in graph.nodes if _decides(node)]
    for node in decisions:
        half = candidates - result.pinned.keys()
        scores = node.inputs[0]
        if scores is None or not scores.name or not half:
            continue
        error = (judge.tensor_errors(half, [scores.name]) or {}).get(scores.name)
        if error is None or error.max_abs == 0:
            continue
        gap = min(
            (decision_gap(node, sample[scores.name]) for sample in judge.read_reference([scores.name])),
            default=math.inf,
        )
        if gap >= DECISION_MARGIN * error.max_abs:
            continue
        evidence = f"`{node.name}` decides by a gap of {gap:.2g}, half changes its scores by up to {error.max_abs:.2g}"
        for maker in graph.ancestors([node]):
            for name in graph.switchable(maker):
                if name in half:
                    result.pinned[name] = (Reason.SELECTION, evidence)
                    result.cones.add(name)


def _decides(node: ir.Node) -> bool:
    """Whether the node turns floats into integers that somebody uses."""
    if not schemas.is_float(node.inputs[0] if node.inputs else None):
        return False
    if node.op_type == "TopK":
        return len(node.outputs) > 1 and _is_used(node.outputs[1])
    to_integer = node.op_type == "Cast" and node.outputs[0].dtype in (ir.DataType.INT32, ir.DataType.INT64)
    return node.op_type in ("ArgMax", "ArgMin") or to_integer


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def decision_gap(node: ir.Node, scores: Array) -> float:
    """How far the scores are from another answer: the smallest gap between the winner and the next, over all rows."""
    values = np.where(np.isfinite(scores), scores, np.finfo(np.float32).min).astype(np.float64)
    if not values.size:
        return math.inf
    if node.op_type == "Cast":
        return float(np.abs(values - np.rint(values)).min()) if not np.all(values == np.rint(values)) else 0.0
    axis = node.attributes.get_int("axis", 0 if node.op_type != "TopK" else -1)
    sign = (
        -1.0
        if node.op_type == "ArgMin" or (node.op_type == "TopK" and node.attributes.get_int("largest", 1) == 0)
        else 1.0
    )
    if values.ndim == 0 or values.shape[axis] < 2:
        return math.inf
    ordered = -np.sort(-sign * values, axis=axis)
    places = 1
    if node.op_type == "TopK" and node.inputs[1] is not None and node.inputs[1].const_value is not None:
        places = int(node.inputs[1].const_value.numpy().item())
    gaps = -np.diff(ordered, axis=axis)
    return float(np.take(gaps, range(min(places, gaps.shape[axis])), axis=axis).min())


# --- pruning --------------------------------------------------------------------------------------------------------


def prune(judge: Judge, candidates: AbstractSet[str], result: Repair) -> None:
    """Give back to half what the repairs pinned and the emulated error does not need, in chunks, then halves of them."""
    load = judge.load(judge.compare(candidates - result.pinned.keys()))
    allowed = max(ENOUGH, load * 1.1)
    pending = [[name for name in result.pinned if name not in result.cones]]
    while pending:
        chunk = pending.pop(0)
        if not chunk:
            continue
        trial = (candidates - result.pinned.keys()) | set(chunk)
        if judge.load(judge.compare(trial)) <= allowed:
            for name in chunk:
                del result.pinned[name]
        elif len(chunk) > 1:
            middle = len(chunk) // 2
            pending += [chunk[:middle], chunk[middle:]]


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
