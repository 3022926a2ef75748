"""`demi export --no-run`: what means nothing without a run, and how its result is told."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from demi.cli.console import Console, mebibytes
from demi.errors import InputError

if TYPE_CHECKING:
    from demi.exporter.no_run import Unproven
    from demi.exporter.request import ExportRequest

NEEDS_A_RUN = {
    "sample": "--sample",
    "input": "--input",
    "budget": "--budget",
    "costs": "--costs",
    "tensorrt": "--tensorrt",
    "output_names": "--output-names",
    "factory": "--model",
    "task": "--task",
    "opset": "--opset",
    "trust_pickle": "--trust-pickle",
}
"""Options that say how a model is run, judged or read from PyTorch, by attribute, and their spelling."""


def check_no_run(args: argparse.Namespace) -> None:
    """Raise InputError for an option that means nothing where nothing is run: it is not ignored in silence."""
    for name, flag in NEEDS_A_RUN.items():
        if getattr(args, name):
            raise InputError(f"{flag} means nothing with --no-run", hint=f"leave {flag} out, or run the model")


def run_unproven(request: ExportRequest, as_json: bool, console: Console) -> int:
    """Convert without running, and print what came out and what was not proven."""
    from demi.exporter.no_run import NOT_PROVEN, export_unproven

    with console.quiet():
        result = export_unproven(request, console.step)
    console.warn(NOT_PROVEN)
    if result.foreign:
        console.note(f"note: operators that neither ONNX nor ONNX Runtime knows keep FP32: {', '.join(result.foreign)}")
    if as_json:
        console.json(_document(result))
    else:
        _print(result, console)
    return 0


def _print(result: Unproven, console: Console) -> None:
    from demi.cli.planning import decision_rows

    share = result.half_bytes / result.fp32_bytes if result.fp32_bytes else 1.0
    source = " and ".join(result.floats) or "integers"
    rows = [
        *decision_rows(result.plan),
        ["casts", str(result.casts), "where the plan crosses from one precision to the other"],
        ["weights", mebibytes(result.half_bytes), f"{share:.3f} of {mebibytes(result.fp32_bytes)} in {source}"],
        ["error", "unknown", "nothing was run; the bundle holds no reference and no golden answers"],
        ["bundle", f"v{result.manifest.version}", str(result.path)],
    ]
    title = f"{result.manifest.name}: {source} -> mixed {result.manifest.precision}, not proven"
    console.table(title, ["", "value", "details "], rows)


def _document(result: Unproven) -> dict[str, object]:
    from demi.exporter.no_run import NOT_PROVEN

    return {
        "bundle": str(result.path),
        "precision": result.manifest.precision,
        "proven": False,
        "not_proven": NOT_PROVEN,
        "unknown_operators": result.foreign,
        "nodes": [
            {"precision": decision.precision.value, "reason": decision.reason.value, "count": count}
            for decision, count in result.plan.counts()
        ],
        "casts": result.casts,
        "weight_bytes": {"fp32": result.fp32_bytes, "half": result.half_bytes},
        "file_bytes": {name: entry.bytes for name, entry in result.manifest.files.items()},
        "source_floats": result.floats,
    }
