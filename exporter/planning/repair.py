"""Repair what does not add up: simulate, blame, repair.

Overflow, cancellation, wrong indices and decisions are not small independent errors. The plan is simulated beside FP32,
tensor by tensor. A node is to blame when the error is born there: large at its output, small at its inputs. If it is
half it becomes single; if it is single already, its inputs must be more exact, so the half nodes that feed it become
single, from further up each time it is blamed again. What turns out not to be needed goes back to half at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import onnx_ir as ir

from demi.accuracy.compare import Comparison
from demi.calibration.deadline import Deadline
from demi.calibration.emulation.trials import TensorError, TrialRunner
from demi.exporter.operators import schemas
from demi.exporter.planning.decision_margins import is_counted, protect_decisions
from demi.exporter.planning.decisions import decides_by, is_quantity
from demi.exporter.planning.repair_state import Graph, Repair
from demi.plan import Reason
from demi.progress import Report

ROUNDS = 60
"""Most rounds of blame; each pins at least one node."""

JUMP = 4.0
"""An error is born where it is this many times larger than at the inputs."""

ENOUGH = 0.5
"""The share of the budget above which an output is looked at for blame."""

ADDITIVE = 20.0
"""The share of the budget that repaired plans aim for: smaller errors add up, and the cut can weigh them."""


def repair(
    graph: Graph,
    runner: TrialRunner,
    candidates: AbstractSet[str],
    ordinary: float = 0.0,
    deadline: Deadline | None = None,
    report: Report | None = None,
) -> Repair:
    """Pin nodes among `candidates` until the emulated outputs are within `ADDITIVE` of the budget, or no blame is left.

    An error of up to `ordinary` (relative L2) is what any rounding makes: nobody is blamed for it, it is the cut's
    business, however tight the budget. When the deadline passes, all that feeds an output beyond the budget is pinned.
    `report` gets the share of the time that is used.
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
        suspects = graph.feeding(_beyond(comparison, runner))
        if deadline.passed:
            _give_up(graph, suspects, half, result)
            break
        errors = runner.tensor_errors(half, [value.name or "" for node in suspects for value in node.outputs])
        if errors is None:
            if not _pin_before_integers(graph, half, result):
                break
            continue
        errors = taken_for_numbers(graph, errors)
        result.first_divergence = result.first_divergence or first_divergence(graph, errors)
        guilty = blame(graph, errors, comparison, runner, ordinary)
        if not _pin(graph, guilty, errors, half, blamed, result):
            break
    protect_decisions(graph, runner, candidates, result)
    return result


def _beyond(comparison: Comparison, runner: TrialRunner) -> set[str]:
    """The outputs whose error is no longer small beside their limit."""
    return {
        diff.output
        for diff in comparison.outputs
        if not diff.relative_l2 <= ENOUGH * runner.scale(diff.output) or diff.exceeded
    }


def _give_up(graph: Graph, suspects: Iterable[ir.Node], half: AbstractSet[str], result: Repair) -> None:
    evidence = "feeds an output beyond the budget, and the time of --search-seconds was up before the cause was known"
    for name in (name for node in suspects for name in graph.switchable(node) if name in half):
        result.pinned[name] = (Reason.FEEDS_MAGNIFIER, evidence)


def blame(
    graph: Graph, errors: dict[str, TensorError], comparison: Comparison, runner: TrialRunner, ordinary: float = 0.0
) -> list[ir.Node]:
    """The nodes where the error of the offending outputs is born, in graph order.

    Thresholds fall from the budget itself until a birth is found: a small error may be born early and grow later.
    """
    bad = _beyond(comparison, runner)
    scale = min((runner.scale(output) for output in bad), default=1e-2)
    suspects = graph.feeding(bad)
    spared = {node for node in suspects if is_counted(graph, node, runner)}  # how much changes is the cut's business
    for threshold in (max(scale, ordinary), max(scale / 4, ordinary)):
        born = [node for node in suspects if node not in spared and _is_born(graph, node, errors, threshold)]
        if born:
            return born
    return []


def taken_for_numbers(graph: Graph, errors: dict[str, TensorError]) -> dict[str, TensorError]:
    """The same errors, those of quantized tensors by how far their numbers are off."""
    made = {value.name or "" for node in graph.nodes if is_quantity(node) for value in node.outputs}
    return {
        name: replace(error, relative=error.as_number) if name in made and error.as_number is not None else error
        for name, error in errors.items()
    }


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
    decisions = [node for node in graph.nodes if decides_by(node)]
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
    told = math.isfinite(error) and schemas.is_float(worst)  # that of integers weighs how many are others
    seen = f"relative error {error:.2g}" if told else _broken(worst)
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
