"""Repair errors that do not add up as small independent ones do: simulate, blame, repair.

Overflow, cancellation, wrong indices and changed decisions are such errors. The plan is simulated beside FP32, tensor
by tensor. A node is to blame if the error originates there: large at its output, small at its inputs. A half node that
is blamed becomes single. If it is single already, its inputs must be more exact: the half nodes that feed it become
single, from further up each time it is blamed again. The minimum cut may later make harmless ones half again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import onnx_ir as ir

from demi.accuracy.compare import Comparison
from demi.calibration.deadline import Deadline
from demi.calibration.emulation.tensor_errors import TensorError
from demi.calibration.emulation.trials import TrialRunner
from demi.exporter.operators import schemas
from demi.exporter.planning.decision_margins import is_counted, protect_decisions
from demi.exporter.planning.decisions import decides_by, is_quantity
from demi.exporter.planning.repair_state import Graph, Repair
from demi.plan import Reason
from demi.progress import Report

ROUNDS = 60
"""Maximum rounds of blame; each pins at least one node."""

JUMP = 4.0
"""An error originates at a node whose output error is this many times the error of its inputs."""

SUSPECT_LOAD = 0.5
"""Share of the budget above which the nodes before an output may be blamed."""

ADDITIVE = 20.0
"""Target of repair, as a share of the budget: smaller errors add up, and the minimum cut weighs them."""


def repair(
    graph: Graph,
    runner: TrialRunner,
    candidates: AbstractSet[str],
    ordinary: float = 0.0,
    deadline: Deadline | None = None,
    report: Report | None = None,
) -> Repair:
    """Pin nodes among `candidates` until the emulated outputs use at most `ADDITIVE` budgets, or no node is to blame.

    Errors of up to `ordinary` (relative L2) are ordinary rounding: no node is blamed for them, however tight the
    budget, and the minimum cut weighs them. When the deadline passes, all nodes that feed an output beyond the budget are
    pinned. `report` receives the share of the time that is used.
    """
    result = Repair()
    deadline = deadline or Deadline()
    blamed: dict[ir.Node, int] = {}
    for _ in range(ROUNDS):
        half = candidates - result.pinned.keys()
        comparison = runner.compare(half)
        if runner.load(comparison) <= ADDITIVE or not half:
            break
        if report is not None:
            report(deadline.used)
        suspects = graph.feeding(_offending_outputs(comparison, runner))
        if deadline.passed:
            _pin_all_before(graph, suspects, half, result)
            break
        errors = runner.tensor_errors(half, [value.name or "" for node in suspects for value in node.outputs])
        if errors is None:
            if not _pin_before_integers(graph, half, result):
                break
            continue
        errors = with_number_errors(graph, errors)
        result.first_divergence = result.first_divergence or first_divergence(graph, errors)
        culprits = blame(graph, errors, comparison, runner, ordinary)
        if not _pin(graph, culprits, errors, half, blamed, result):
            break
    protect_decisions(graph, runner, candidates, result)
    return result


def _offending_outputs(comparison: Comparison, runner: TrialRunner) -> set[str]:
    """Return the outputs whose error is not small compared with their limit."""
    return {
        diff.output
        for diff in comparison.outputs
        if not diff.relative_l2 <= SUSPECT_LOAD * runner.scale(diff.output) or diff.exceeded
    }


def _pin_all_before(graph: Graph, suspects: Iterable[ir.Node], half: AbstractSet[str], result: Repair) -> None:
    evidence = "feeds an output beyond the budget, and --search-seconds passed before the cause was found"
    for name in (name for node in suspects for name in graph.switchable(node) if name in half):
        result.pinned[name] = (Reason.FEEDS_MAGNIFIER, evidence)


def blame(
    graph: Graph, errors: dict[str, TensorError], comparison: Comparison, runner: TrialRunner, ordinary: float = 0.0
) -> list[ir.Node]:
    """Return the nodes where the error of the offending outputs originates, in graph order.

    The threshold falls from the budget itself until an origin is found: a small early error may grow later.
    """
    bad = _offending_outputs(comparison, runner)
    scale = min((runner.scale(output) for output in bad), default=1e-2)
    suspects = graph.feeding(bad)
    exempt = {node for node in suspects if is_counted(graph, node, runner)}  # the cut weighs changed boxes and choices
    for threshold in (max(scale, ordinary), max(scale / 4, ordinary)):
        origins = [node for node in suspects if node not in exempt and _originates_at(graph, node, errors, threshold)]
        if origins:
            return origins
    return []


def with_number_errors(graph: Graph, errors: dict[str, TensorError]) -> dict[str, TensorError]:
    """Return the errors, those of quantized tensors measured as numbers instead of as changed elements."""
    made = {value.name or "" for node in graph.nodes if is_quantity(node) for value in node.outputs}
    return {
        name: replace(error, relative=error.as_number) if name in made and error.as_number is not None else error
        for name, error in errors.items()
    }


def _originates_at(graph: Graph, node: ir.Node, errors: dict[str, TensorError], threshold: float) -> bool:
    after = max((errors[value.name].relative for value in node.outputs if value.name in errors), default=0.0)
    before = max(
        (errors[value.name or ""].relative for value in graph.reads[node] if value.name in errors), default=0.0
    )
    if math.isinf(after):
        return not math.isinf(before)
    return after > threshold and after > JUMP * before


def _pin(
    graph: Graph,
    culprits: Sequence[ir.Node],
    errors: dict[str, TensorError],
    half: AbstractSet[str],
    blamed: dict[ir.Node, int],
    result: Repair,
) -> bool:
    """Pin the culprits, or the half nodes that feed single ones; return True if anything changed."""
    before = len(result.pinned)
    for node in culprits:
        own = [name for name in graph.switchable(node) if name in half]
        if own:
            evidence = _evidence(graph, node, errors)
            result.pinned.update(dict.fromkeys(own, (Reason.ERROR_BORN, evidence)))
            continue
        blamed[node] = blamed.get(node, 0) + 1
        feeding = _feeding(graph, node, half, 2 ** (blamed[node] - 1))
        for name in feeding:
            result.pinned.setdefault(
                name, (Reason.FEEDS_MAGNIFIER, f"feeds `{node.name}`, which magnifies rounding errors")
            )
    return len(result.pinned) > before


def _feeding(graph: Graph, node: ir.Node, half: AbstractSet[str], levels: int) -> list[str]:
    """Return the nearest half nodes that feed a node: at least one level of them, and up to `levels`."""
    for reach in (levels, *(levels * 2**k for k in range(1, 12))):
        found = [name for maker in graph.ancestors([node], reach) for name in graph.switchable(maker) if name in half]
        if found:
            return found
    return []


def _pin_before_integers(graph: Graph, half: AbstractSet[str], result: Repair) -> bool:
    """Pin all nodes before float-to-integer nodes, after a run that failed because of a wrong index.

    If there is no such node, all half nodes are pinned. Returns True if anything changed.
    """
    decisions = [node for node in graph.nodes if decides_by(node)]
    before = [name for node in graph.ancestors(decisions) for name in graph.switchable(node) if name in half]
    for name in before or half:
        result.pinned[name] = (Reason.SELECTION, "feeds an index that rounding moves out of bounds")
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
    is_rounding = math.isfinite(error) and schemas.is_float(worst)  # integers are changed, not rounded
    seen = f"relative error {error:.2g}" if is_rounding else _symptom(worst)
    return f"{seen} on `{worst.name}`, {before:.2g} at its inputs"


def first_divergence(graph: Graph, errors: dict[str, TensorError]) -> str | None:
    """Return the origin of the first non-finite value, else of the first error beyond 10%, as text; else None."""
    for limit in (math.inf, 0.1):
        for node in graph.nodes:
            for value in node.outputs:
                if value.name in errors and errors[value.name].relative >= limit:
                    words = _symptom(value) if math.isinf(limit) else "an error beyond 10%"
                    return f"{words} first arises on `{value.name}`, made by {node.op_type} `{node.name}`"
    return None


def _symptom(value: ir.Value) -> str:
    """Name an infinite error: non-finite floats, or integers that differ from FP32's in value or number."""
    return "NaN or infinity" if schemas.is_float(value) else "a result other than FP32's"
