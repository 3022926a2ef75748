"""`demi export --no-run`: options that need a run, and the output of an export without one."""

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
"""Options for running, judging or exporting a model, by attribute, with their flags."""


def check_no_run(args: argparse.Namespace) -> None:
    """Raise InputError for an option that needs a run, instead of ignoring it silently."""
    for name, flag in NEEDS_A_RUN.items():
        if getattr(args, name):
            raise InputError(f"{flag} has no effect with --no-run", hint=f"leave out {flag} or --no-run")


def run_unproven(request: ExportRequest, as_json: bool, console: Console) -> int:
    """Convert without running the model; print the result and what remains unproven."""
    from demi.exporter.no_run import NOT_PROVEN, export_unproven

    with console.quiet():
        result = export_unproven(request, console.step)
    console.warn(NOT_PROVEN)
    if result.foreign:
        console.note(f"note: operators unknown to ONNX and ONNX Runtime stay in FP32: {', '.join(result.foreign)}")
    if as_json:
        console.json(_document(result))
    else:
        _print(result, console)
    return 0


def _print(result: Unproven, console: Console) -> None:
    from demi.cli.plan_tables import decision_rows

    share = result.half_bytes / result.fp32_bytes if result.fp32_bytes else 1.0
    source = " and ".join(result.floats) or "integers"
    rows = [
        *decision_rows(result.plan),
        ["casts", str(result.casts), "where the plan crosses from one precision to the other"],
        ["weights", mebibytes(result.half_bytes), f"{share:.0%} of the {mebibytes(result.fp32_bytes)} in {source}"],
        ["error", "unknown", "nothing was run; the bundle has no reference and no golden outputs"],
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
