"""`demi diff`: which nodes changed precision between two bundles or plans, why, and how the error changed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console, significant
from demi.cli.options import add_json
from demi.printable import printable

if TYPE_CHECKING:
    from demi.calibration.gate.diff import Diff, Side
    from demi.plan import Decision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi diff`."""
    for name, what in (("a", "before"), ("b", "after")):
        parser.add_argument(name, type=Path, metavar=name.upper(), help=f"a bundle's folder or a plan's file: {what}")
    parser.add_argument(
        "--data", metavar="NPZ", help="measure both bundles on these inputs (default: the golden sets of each bundle)"
    )
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Show both side by side; return 0 whether or not they differ."""
    from demi.calibration.gate.data import read_data
    from demi.calibration.gate.diff import diff

    with console.step("comparing"):
        found = diff(args.a, args.b, read_data(args.data) if args.data is not None else None)
    if args.json:
        console.json(_document(found))
    else:
        _print(found, console)
    if found.a.evaluation and found.b.evaluation and not found.same_samples:
        console.note("note: the golden sets differ: give both the same inputs with --data to compare their errors")
    return 0


def _print(found: Diff, console: Console) -> None:
    console.table(
        f"A: {printable(str(found.a.path))}\nB: {printable(str(found.b.path))}", ["", "A", "B"], _figures(found)
    )
    rows = [
        [change.node, change.op_type, _side(change.was), _side(change.now), _evidence(change.now or change.was)]
        for change in found.changes
    ]
    if rows:
        console.table("nodes that differ", ["node", "operator ", "A ", "B ", "evidence "], rows)
    else:
        console.data("the plans are equal: every node has the same precision for the same reason")


def _figures(found: Diff) -> list[list[str]]:
    rows = [
        _row("nodes in half", found, lambda side: side.half_nodes, "{:,}"),
        _row("nodes in FP32", found, lambda side: side.single_nodes, "{:,}"),
        _row("model bytes", found, lambda side: side.model_bytes, "{:,.0f}"),
        _row("predicted error, of the budget", found, lambda side: side.predicted, "{:.1%}"),
    ]
    outputs = {name for side in (found.a, found.b) for name in _errors(side)}
    rows += [
        _row(f"relative L2 of {name}", found, lambda side, name=name: _errors(side).get(name), "{:.3g}")  # type: ignore[misc]
        for name in sorted(outputs)
    ]
    rows.append(_row("tokens like FP32", found, _tokens, "{:.2%}"))
    return [row for row in rows if row[1:] != ["-", "-"]]


def _row(name: str, found: Diff, figure: Callable[[Side], float | None], form: str) -> list[str]:
    values = [figure(found.a), figure(found.b)]
    return [name, *("-" if value is None else form.format(value) for value in values)]


def _errors(side: Side) -> dict[str, float]:
    return {each.output: each.relative_l2 for each in side.evaluation.comparison.outputs} if side.evaluation else {}


def _tokens(side: Side) -> float | None:
    return side.evaluation.tokens.same if side.evaluation and side.evaluation.tokens else None


def _side(decision: Decision | None) -> str:
    return f"{decision.precision.label}: {decision.reason.value}" if decision else "absent"


def _evidence(decision: Decision | None) -> str:
    if decision is None:
        return ""
    share = f"in half, uses {significant(decision.sensitivity)} of the budget by itself" if decision.sensitivity else ""
    return decision.evidence or share


def _document(found: Diff) -> dict[str, object]:
    from demi.calibration.gate.reports.json_report import change_to_json

    return {
        "a": _side_document(found.a),
        "b": _side_document(found.b),
        "same_samples": found.same_samples,
        "nodes": [change_to_json(change) for change in found.changes],
    }


def _side_document(side: Side) -> dict[str, object]:
    return {
        "path": side.path,
        "precision": side.plan.precision,
        "half_nodes": side.half_nodes,
        "single_nodes": side.single_nodes,
        "predicted_share_of_budget": side.predicted,
        "model_bytes": side.model_bytes,
        "samples": side.evaluation and side.evaluation.origin,
        "outputs": side.evaluation.comparison.outputs if side.evaluation else [],
        "tokens": side.evaluation and side.evaluation.tokens,
    }
