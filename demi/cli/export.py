"""`demi export`: a trained FP32 model to a half-precision bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.bundles.drafts import remove_abandoned
from demi.cli.console import Console, mebibytes, significant
from demi.cli.engine_options import (
    add_engine_options,
    engine_document,
    engine_options,
    print_engine,
)
from demi.cli.no_run import check_no_run, run_unproven
from demi.cli.options import add_json
from demi.cli.planning import (
    add_model,
    add_plan_options,
    add_source_options,
    explain_plan,
    model_path,
    plan_rows,
    plan_settings,
    positive,
    predicted_text,
    source_options,
)
from demi.errors import DemiError, InputError

if TYPE_CHECKING:
    from demi.calibration.samples import Samples
    from demi.exporter.request import Exported, ExportRequest
    from demi.exporter.tensorrt.build import BuiltEngine
    from demi.exporter.tensorrt.builder import EngineOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `demi export`."""
    add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=_folder,
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
    contents.add_argument(
        "--no-run",
        action="store_true",
        help="convert an .onnx file by operator lists without running it, for operators that only the target has; "
        "nothing is proven then",
    )
    contents.add_argument("--half-io", action="store_true", help="make float inputs and outputs half, too")
    contents.add_argument("--no-reference", action="store_true", help="leave the FP32 model out of the bundle")
    contents.add_argument("--no-report", action="store_true", help="draw no report.html")
    contents.add_argument(
        "--max-batch", type=positive, default=32, metavar="N", help="most rows one run may hold (default: 32)"
    )
    add_engine_options(parser)
    add_json(parser)


def _folder(text: str) -> Path:
    """A folder that has a name: an empty one is a variable that was not set, and no place to write to."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name is no folder")
    return Path(text)


def run(args: argparse.Namespace, console: Console) -> int:
    """Export, and print what came out."""
    if args.no_run:
        check_no_run(args)
    engine = engine_options(args)
    if args.no_run:
        return run_unproven(_request(args), args.json, console)
    if engine is not None:
        from demi.exporter.tensorrt.build import require_builder

        require_builder(engine.device)  # before the long part
    if args.model is not None and _is_bundle(args.model):
        return _add_engine(args, engine, console)
    request = _request(args)
    from demi.exporter.pipeline import export_bundle

    for left in remove_abandoned(request.target):
        console.note(f"note: cleaned up after a process that died while it wrote here: `{left.name}`")
    with console.quiet():
        result = export_bundle(request, console.step, console.warn)
    built = _build_beside(result.path, engine, console) if engine is not None else None
    if result.samples.drawn:
        console.warn(
            f"ranges and accuracy are guesses: they were measured on {result.samples.origin}; give real inputs with --sample"
        )
    if result.conversion.lowered.losses:
        console.note(_losses(result))
    if result.fails_here:
        console.warn(
            f"the half model cannot run on this CPU, where `demi serve` answers with its FP32 reference: {result.fails_here}"
        )
    for line in result.warnings:
        console.warn(line)
    for line in result.words:
        console.note(f"note: {line}")
    if result.no_report:
        console.note(f"note: {result.no_report}")
    if unjoined := result.manifest.batch.reason:
        console.note(f"note: requests are not joined into batches: {unjoined}")
    for axis in result.manifest.batch.pad.axes:
        console.note(
            f"note: requests of different lengths may share a run: `{axis}` is padded, and answers stay the same"
        )
    for line in result.manifest.varying.words():
        console.note(f"note: {line}")
    for line in (*result.conversion.comparison.unmeasured(), *rows_without_numbers(result.samples)):
        console.warn(f"{line}; what half does there cannot be measured")
    if engine is None and (why := _why_not_faster(args.precision)):
        console.note(f"note: {why}")
    if args.json:
        console.json(_document(result) | ({"engine": engine_document(built)} if built else {}))
    else:
        _print(result, console)
        if built:
            print_engine(built, console)
    return 0


def _is_bundle(path: Path) -> bool:
    from demi.bundles.bundle import versions
    from demi.bundles.manifest import MANIFEST

    return (path / MANIFEST).is_file() or bool(versions(path))


def _add_engine(args: argparse.Namespace, engine: EngineOptions | None, console: Console) -> int:
    """An engine, and nothing else, for a bundle that is there."""
    if engine is None:
        raise InputError(
            "this is a bundle already", where=str(args.model), hint="add --tensorrt to build an engine for it"
        )
    built = _build(args.model, engine, console)
    if args.json:
        console.json(engine_document(built))
    else:
        print_engine(built, console)
    return 0


def _build(path: Path, engine: EngineOptions, console: Console) -> BuiltEngine:
    from demi.bundles.bundle import open_bundle
    from demi.exporter.tensorrt.build import build_engine

    with console.quiet():
        return build_engine(open_bundle(path), engine, console.step)


def _build_beside(path: Path, engine: EngineOptions, console: Console) -> BuiltEngine:
    """The engine of a bundle that has just been written, which stays whatever becomes of the engine."""
    try:
        return _build(path, engine, console)
    except DemiError:
        console.note(f"note: the bundle is written, without an engine: {path}")
        raise


def _why_not_faster(precision: str) -> str | None:
    from demi.runtime.base import Device
    from demi.runtime.cuda.bindings import find_gpu
    from demi.runtime.cuda.capability import why_not_faster

    return why_not_faster(find_gpu(Device("cuda")), precision)


def _request(args: argparse.Namespace) -> ExportRequest:
    from demi.bundles.manifest import name_of_file
    from demi.exporter.request import ExportRequest
    from demi.plan import read_plan

    if args.precision == "bf16" and args.half_io:
        raise InputError("--half-io needs --fp16: NumPy and most clients have no bfloat16", hint="leave --half-io out")
    return ExportRequest(
        source=model_path(args),
        output=args.output or Path("models") / name_of_file(model_path(args).stem),
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
    from demi.accuracy.matching import told

    manifest, planned, lowered = result.manifest, result.conversion.planned, result.conversion.lowered
    share = result.half_bytes / result.fp32_bytes if result.fp32_bytes else 1.0
    source = " and ".join(result.floats) or "integers"
    rows = [
        *plan_rows(planned),
        ["casts", str(lowered.casts), "where the plan crosses from one precision to the other"],
        ["weights", mebibytes(result.half_bytes), f"{share:.3f} of {mebibytes(result.fp32_bytes)} in {source}"],
    ]
    for diff in result.conversion.comparison.outputs:
        details = f"relative L2{predicted_text(planned, diff.output)}; budget: {diff.limits}; max abs {significant(diff.max_abs)}"
        if diff.unmeasured:
            details += f"; {diff.unmeasured:,} of {diff.elements:,} not comparable"
        rows.append([f"error of {diff.output}", significant(diff.relative_l2), details])
        if diff.found:
            rows.append(
                [
                    f"boxes of {diff.output}",
                    significant(diff.boxes or 0.0),
                    told(diff.changes, diff.found, diff.changed),
                ]
            )
        if diff.limits.agree is not None and diff.agree is not None:
            rows.append([f"choices of {diff.output}", f"{diff.agree:.4f}", "the share of elements that agree"])
    if result.export_error is not None:
        types = "" if result.was else ", both in FP32"
        rows.append(["ONNX against PyTorch", significant(result.export_error), f"relative L2{types}"])
    rows.append(["measured on", str(len(result.samples)), f"sets of inputs: {result.samples.origin}"])
    rows.append(["bundle", f"v{manifest.version}", str(result.path)])
    console.table(headline(result), ["", "value", "details "], rows)
    explain_plan(planned, console)


def headline(result: Exported) -> str:
    """What became of what: `m: FP32 -> mixed fp16, 98% of the FLOPs in half`, or that nothing did."""
    name, source = result.manifest.name, " and ".join(result.was or result.floats) or "integers alone"
    planned, precision = result.conversion.planned, result.manifest.precision
    if not planned.plan.half_nodes:
        return f"{name}: {source}, left as it is"
    if planned.fp32_share is None:
        return f"{name}: {source} -> mixed {precision}"
    if result.gain is not None and result.gain.objection:
        return f"{name}: {source}, {1 - planned.fp32_share.flops:.1%} of the FLOPs in {precision}"
    return f"{name}: {source} -> mixed {precision}, {1 - planned.fp32_share.flops:.0%} of the FLOPs in half"


def rows_without_numbers(samples: Samples) -> list[str]:
    """One line for each input that holds NaN or infinity in some of its rows, or nothing in all of them."""
    import numpy as np

    lines = []
    for name in samples.feeds[0]:
        if not any(feeds[name].size for feeds in samples.feeds):
            lines.append(f"input `{name}` is empty in all of {samples.origin}")
        arrays = [feeds[name] for feeds in samples.feeds if feeds[name].dtype.kind == "f"]
        bad = sum(int((~np.isfinite(array)).any(axis=tuple(range(1, array.ndim))).sum()) for array in arrays)
        if bad:
            rows = sum(len(array) if array.ndim else 1 for array in arrays)
            lines.append(f"input `{name}` holds NaN or infinity in {bad:,} of {rows:,} rows of {samples.origin}")
    return lines


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
        "fp32_share": planned.fp32_share,
        "weight_bytes": {"fp32": result.fp32_bytes, "half": result.half_bytes},
        "file_bytes": {name: entry.bytes for name, entry in result.manifest.files.items()},
        "outputs": result.conversion.comparison.outputs,
        "predicted_relative_l2": planned.predicted,
        "source_floats": [*result.was, *result.floats],
        "within_budget": bool(result.conversion.comparison),
        "batch": result.manifest.batch,
        "varying": result.manifest.varying,
        "fails_on_cpu": result.fails_here or None,
        "onnx_against_pytorch_relative_l2": result.export_error,
        "samples": {"origin": result.samples.origin, "drawn": result.samples.drawn, "sets": len(result.samples)},
    }
