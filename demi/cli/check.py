"""`demi check`: does a bundle still meet its accuracy budget? For CI: 0 yes, 1 no."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.budget import parse_budget
from demi.cli.console import Console, significant
from demi.cli.options import add_budget, add_json

if TYPE_CHECKING:
    from calibration.check import Check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `demi check`."""
    parser.add_argument(
        "bundles",
        type=Path,
        nargs="+",
        metavar="BUNDLE",
        help="a model's folder (its newest version) or a version's folder",
    )
    add_budget(parser, "the bundle's own")
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Check every bundle, print the results, and say by the exit code whether all passed."""
    budget = parse_budget(args.budget) if args.budget else None
    from calibration.check import check_bundle

    checks = []
    for path in args.bundles:
        with console.step(f"checking {path}"):
            checks.append(check_bundle(path, budget))
    if args.json:
        console.json([_document(check) for check in checks])
    else:
        for check in checks:
            _print(check, console)
    for check in checks:
        for failure in check.failures:
            console.note(f"over budget: {check.name} v{check.version}: {failure}")
    return 0 if all(checks) else 1


def _print(check: Check, console: Console) -> None:
    rows = [
        [
            diff.output,
            significant(diff.relative_l2),
            significant(diff.max_abs),
            f"{diff.cosine:.6f}",
            "-" if diff.top1 is None else f"{diff.top1:.4f}",
            str(diff.non_finite),
            str(diff.limits),
            "within" if diff else "OVER",
        ]
        for diff in check.comparison.outputs
    ]
    columns = ["output", "relative L2", "max abs", "cosine", "top-1", "non-finite", "budget ", "verdict "]
    console.table(
        f"{check.name} v{check.version} ({check.precision}): {check.comparison.samples} golden sets against FP32",
        columns,
        rows,
    )
    if check.reference_error is not None:
        console.data(f"FP32 reference against golden outputs: {significant(check.reference_error)} relative L2")
    console.data(f"{check.bundle}: {'passed' if check else 'FAILED'}")


def _document(check: Check) -> dict[str, object]:
    return {
        "bundle": check.bundle,
        "name": check.name,
        "version": check.version,
        "precision": check.precision,
        "passed": bool(check),
        "failures": check.failures,
        "reference_relative_l2": check.reference_error,
        "samples": check.comparison.samples,
        "outputs": check.comparison.outputs,
    }
