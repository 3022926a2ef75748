"""`demi export`: a trained FP32 model to a half-precision bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console, mebibytes, significant
from demi.cli.options import add_json
from demi.cli.planning import (
    add_plan_options,
    add_source_options,
    explain_plan,
    plan_rows,
    plan_settings,
    positive,
    predicted_text,
    source_options,
)
from demi.errors import InputError

if TYPE_CHECKING:
    from exporter.pipeline import Exported, ExportRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `demi export`."""
    parser.add_argument(
        "model",
        type=Path,
        help=".pt2 (torch.export), .pt (TorchScript, module or state_dict), .safetensors, .onnx or a transformers folder",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="the model's folder (default: models/NAME); its version becomes a folder in it",
    )
    parser.add_argument(
        "--model-version", type=positive, default=1, metavar="N", help="version of the bundle (default: 1)"
    )
    parser.add_argument("--force", action="store_true", help="replace the bundle that is there")
    add_source_options(parser)
    add_plan_options(parser)
    contents = parser.add_argument_group("the bundle")
    contents.add_argument(
        "--plan", type=Path, metavar="JSON", help="carry out this plan.json instead of finding a plan"
    )
    contents.add_argument("--half-io", action="store_true", help="make float inputs and outputs half, too")
    contents.add_argument("--no-reference", action="store_true", help="leave the FP32 model out of the bundle")
    contents.add_argument("--no-report", action="store_true", help="draw no report.html")
    contents.add_argument(
        "--max-batch", type=positive, default=32, metavar="N", help="most rows one run may hold (default: 32)"
    )
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Export, and print what came out."""
    request = _request(args)
    from exporter.pipeline import export_bundle

    with console.quiet():
        result = export_bundle(request, console.step)
    if result.samples.drawn:
        console.warn(
            f"ranges and accuracy are guesses: they were measured on {result.samples.origin}; give real inputs with --sample"
        )
    if result.conversion.lowered.losses:
        console.note(_losses(result))
    if result.no_report:
        console.note(f"note: {result.no_report}")
    for axis in result.manifest.batch.pad.axes:
        console.note(
            f"note: requests of different lengths may share a run: `{axis}` is padded, and answers stay the same"
        )
    if not result.conversion.planned.plan.half_nodes:
        console.warn("no node computes in half: this model has nothing to gain from half precision within its budget")
    if args.json:
        console.json(_document(result))
    else:
        _print(result, console)
    return 0


def _request(args: argparse.Namespace) -> ExportRequest:
    from demi.plan import read_plan
    from exporter.pipeline import ExportRequest

    if args.precision == "bf16" and args.half_io:
        raise InputError("--half-io needs --fp16: NumPy and most clients have no bfloat16", hint="leave --half-io out")
    return ExportRequest(
        source=args.model,
        output=args.output or Path("models") / args.model.stem,
        settings=plan_settings(args),
        plan=read_plan(args.plan) if args.plan else None,
        version=args.model_version,
        options=source_options(args),
        optimize=not args.no_optimize,
        reference=not args.no_reference,
        report=not args.no_report,
        max_batch=args.max_batch,
        force=args.force,
        samples_origin=str(args.sample) if args.sample else "",
    )


def _print(result: Exported, console: Console) -> None:
    """One table: nodes by precision and reason, sizes, error against budget, where the bundle is; then the why."""
    manifest, planned, lowered = result.manifest, result.conversion.planned, result.conversion.lowered
    share = result.half_bytes / result.fp32_bytes if result.fp32_bytes else 1.0
    rows = [
        *plan_rows(planned),
        ["casts", str(lowered.casts), "where the plan crosses from one precision to the other"],
        ["weights", mebibytes(result.half_bytes), f"{share:.3f} of {mebibytes(result.fp32_bytes)} in FP32"],
    ]
    for diff in result.conversion.comparison.outputs:
        details = f"relative L2{predicted_text(planned, diff.output)}; budget: {diff.limits}; max abs {significant(diff.max_abs)}"
        rows.append([f"error of {diff.output}", significant(diff.relative_l2), details])
    if result.export_error is not None:
        rows.append(["ONNX against PyTorch", significant(result.export_error), "relative L2, both in FP32"])
    rows.append(["measured on", str(len(result.samples)), f"sets of inputs: {result.samples.origin}"])
    rows.append(["bundle", f"v{manifest.version}", str(result.path)])
    console.table(f"{manifest.name}: FP32 -> mixed {manifest.precision}", ["", "value", "details "], rows)
    explain_plan(planned, console)


def _losses(result: Exported) -> str:
    losses = result.conversion.lowered.losses
    worst = sorted(losses.items(), key=lambda item: -item[1].overflowed - item[1].vanished)
    named = ", ".join(f"`{name}` ({loss.vanished:,} vanish, {loss.overflowed:,} overflow)" for name, loss in worst[:3])
    more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
    return f"note: single values are lost in weights: {named}{more}; the measured error includes them, accuracy.json lists them"


def _document(result: Exported) -> dict[str, object]:
    planned = result.conversion.planned
    return {
        "bundle": str(result.path),
        "precision": result.manifest.precision,
        "nodes": [
            {"precision": decision.precision.value, "reason": decision.reason.value, "count": count}
            for decision, count in planned.plan.counts()
        ],
        "casts": result.conversion.lowered.casts,
        "fp32_share": {"flops": planned.single_flops, "tensor_bytes": planned.single_bytes},
        "weight_bytes": {"fp32": result.fp32_bytes, "half": result.half_bytes},
        "file_bytes": {name: entry.bytes for name, entry in result.manifest.files.items()},
        "outputs": result.conversion.comparison.outputs,
        "predicted_relative_l2": planned.predicted,
        "within_budget": bool(result.conversion.comparison),
        "onnx_against_pytorch_relative_l2": result.export_error,
        "samples": {"origin": result.samples.origin, "drawn": result.samples.drawn, "sets": len(result.samples)},
    }
