"""`demi explain`: find the source of a bundle's error. A diagnosis, not a verdict: the exit code is 0 either way."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from demi.cli.console import Console, significant
from demi.cli.options import add_bundle, add_json, positive

if TYPE_CHECKING:
    from demi.bundles.bundle import Bundle
    from demi.calibration.explain.explanation import Explanation
    from demi.calibration.explain.trace import NodeTrace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi explain`."""
    add_bundle(parser)
    parser.add_argument(
        "--input",
        metavar="NPZ",
        help="inputs by name to run on: an .npz file, a folder of them, or package.module:function (default: the bundle's golden inputs)",
    )
    parser.add_argument(
        "--top", type=positive, default=12, metavar="N", help="number of nodes to show (default: 12; --json has all)"
    )
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Run both models side by side, name the node where the error arises, and show the most important nodes."""
    from demi.bundles.bundle import open_bundle
    from demi.calibration.explain.explanation import explain_bundle
    from demi.calibration.samples import load_arrays

    bundle = open_bundle(args.bundle)
    inputs = load_arrays(args.input) if args.input is not None else ()
    explanation = explain_bundle(bundle, inputs, str(args.input), console.step)
    if args.json:
        console.json(_document(bundle, explanation))
    else:
        _print(bundle, explanation, args.top, console)
    return 0


def _print(bundle: Bundle, explanation: Explanation, top: int, console: Console) -> None:
    console.data(explanation.headline)
    for line in explanation.lines[1:]:
        console.data(f"then {line}")
    for diff in explanation.comparison.outputs:
        verdict = "within" if diff else "over"
        console.data(
            f"output `{diff.output}`: {significant(diff.relative_l2)} relative L2, {verdict} its budget ({diff.limits})"
        )
    for line in explanation.comparison.boxes():
        console.data(f"output {line}")
    shown = explanation.most_relevant(top)
    if not shown:
        return
    console.data("")
    title = f"{len(shown)} of {len(explanation.nodes)} nodes in order; errors are relative L2 against FP32"
    columns = ["node", "operator ", "stores ", "enters", "adds", "leaves", "non-finite", "why "]
    console.table(
        f"{bundle.manifest.name} v{bundle.manifest.version}: {title}",
        columns,
        [_row(node, bundle.manifest.precision, explanation.fails_at) for node in shown],
    )


def _row(node: NodeTrace, precision: str, fails_at: str | None) -> list[str]:
    leaves = "-" if node.leaves is None else significant(node.leaves)
    why = f"{node.reason}: {node.evidence}" if node.evidence else node.reason
    return [
        node.node,
        node.op_type,
        precision if node.precision == "half" else "fp32",
        significant(node.enters),
        "-" if node.adds is None else significant(node.adds),
        "fails" if node.node == fails_at else leaves,
        f"{node.non_finite:,}",
        why or "cast between precisions",
    ]


def _document(bundle: Bundle, explanation: Explanation) -> dict[str, object]:
    return {
        "bundle": str(bundle.path),
        "name": bundle.manifest.name,
        "version": bundle.manifest.version,
        "precision": bundle.manifest.precision,
        "headline": explanation.headline,
        "culprits": explanation.culprits,
        "failure": explanation.failure,
        "first_non_finite": explanation.first_non_finite,
        "within_budget": bool(explanation.comparison),
        "samples": {"origin": explanation.origin, "sets": explanation.comparison.samples},
        "outputs": explanation.comparison.outputs,
        "nodes": explanation.nodes,
    }
