"""`demi export`: a trained FP32 model to a half-precision bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.budget import parse_budget
from demi.cli.console import Console, mebibytes, significant
from demi.cli.options import add_budget, add_json
from demi.errors import InputError
from demi.tensors import parse_spec

if TYPE_CHECKING:
    from exporter.pipeline import Exported, ExportRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `demi export`."""
    parser.add_argument(
        "model", type=Path, help=".pt2 (torch.export), .pt (TorchScript, module or state_dict) or .onnx"
    )
    half = parser.add_mutually_exclusive_group()
    half.add_argument(
        "--fp16", action="store_const", dest="precision", const="fp16", help="IEEE half precision (default)"
    )
    half.add_argument(
        "--bf16", action="store_const", dest="precision", const="bf16", help="bfloat16: float32's range, fewer digits"
    )
    parser.set_defaults(precision="fp16")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="the model's folder (default: models/NAME); its version becomes a folder in it",
    )
    parser.add_argument(
        "--model-version", type=_positive, default=1, metavar="N", help="version of the bundle (default: 1)"
    )
    parser.add_argument("--force", action="store_true", help="replace the bundle that is there")
    source = parser.add_argument_group("the source")
    source.add_argument(
        "--sample",
        type=Path,
        metavar="NPZ",
        help="inputs by name: an .npz file or a folder of them; accuracy is measured on them",
    )
    source.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SPEC",
        help="an input as name:dtype[dims], e.g. input_ids:int64[batch,seq]; names are free axes; repeatable",
    )
    source.add_argument("--output-names", default="", metavar="A,B", help="names for the outputs, in order")
    source.add_argument(
        "--model", dest="factory", metavar="PKG.MOD:FACTORY", help="builds the module that a state_dict belongs to"
    )
    source.add_argument("--trust-pickle", action="store_true", help="load a pickled module: runs code from the file")
    source.add_argument("--opset", type=_positive, metavar="N", help="ONNX opset to export PyTorch models with")
    source.add_argument("--seed", type=int, default=0, metavar="N", help="seed for drawn inputs (default: 0)")
    precision = parser.add_argument_group("precision")
    add_budget(precision, "relative_l2=1e-2")
    precision.add_argument(
        "--keep-fp32",
        action="append",
        default=[],
        metavar="NODE",
        help="node name, glob or operator type to keep in FP32; repeatable",
    )
    precision.add_argument("--half-io", action="store_true", help="make float inputs and outputs half, too")
    contents = parser.add_argument_group("the bundle")
    contents.add_argument("--no-reference", action="store_true", help="leave the FP32 model out of the bundle")
    contents.add_argument(
        "--max-batch", type=_positive, default=32, metavar="N", help="most rows one run may hold (default: 32)"
    )
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Export, and print what came out."""
    request = _request(args)
    from exporter.pipeline import export_bundle

    with console.quiet():
        result = export_bundle(request, console.step)
    if result.samples.drawn:
        console.warn(f"accuracy was measured on {result.samples.origin}; give real inputs with --sample")
    if result.lowered.losses:
        console.note(_losses(result))
    if args.json:
        console.json(_document(result))
    else:
        _print(result, console)
    return 0


def _request(args: argparse.Namespace) -> ExportRequest:
    # Imported here: the samples need NumPy alone, the pipeline needs onnx.
    from calibration.samples import load_arrays
    from exporter.pipeline import ExportRequest
    from exporter.source import SourceOptions

    if args.precision == "bf16" and args.half_io:
        raise InputError("--half-io needs --fp16: NumPy and most clients have no bfloat16", hint="leave --half-io out")
    options = SourceOptions(
        samples=tuple(load_arrays(args.sample)) if args.sample else (),
        inputs=tuple(parse_spec(text) for text in args.input),
        output_names=tuple(name.strip() for name in args.output_names.split(",") if name.strip()),
        factory=args.factory,
        trust_pickle=args.trust_pickle,
        opset=args.opset,
        seed=args.seed,
    )
    return ExportRequest(
        source=args.model,
        output=args.output or Path("models") / args.model.stem,
        precision=args.precision,
        version=args.model_version,
        budget=parse_budget(args.budget),
        options=options,
        keep_fp32=tuple(args.keep_fp32),
        half_io=args.half_io,
        reference=not args.no_reference,
        max_batch=args.max_batch,
        force=args.force,
        samples_origin=str(args.sample) if args.sample else "",
    )


def _print(result: Exported, console: Console) -> None:
    """One table: nodes by precision and reason, sizes, error against budget, where the bundle is."""
    manifest = result.manifest
    rows = [
        [
            f"nodes in {manifest.precision}" if decision.is_half else "nodes in fp32",
            str(count),
            decision.reason.value if not decision.evidence else f"{decision.reason.value}: {decision.evidence}",
        ]
        for decision, count in result.plan.counts()
    ]
    share = result.half_bytes / result.fp32_bytes if result.fp32_bytes else 1.0
    rows.append(["casts", str(result.lowered.casts), "where the plan crosses from one precision to the other"])
    rows.append(["weights", mebibytes(result.half_bytes), f"{share:.3f} of {mebibytes(result.fp32_bytes)} in FP32"])
    for diff in result.comparison.outputs:
        rows.append(
            [
                f"error of {diff.output}",
                significant(diff.relative_l2),
                f"relative L2; budget: {diff.limits}; max abs {significant(diff.max_abs)}",
            ]
        )
    if result.export_error is not None:
        rows.append(["ONNX against PyTorch", significant(result.export_error), "relative L2, both in FP32"])
    rows.append(["measured on", str(len(result.samples)), f"sets of inputs: {result.samples.origin}"])
    rows.append(["bundle", f"v{manifest.version}", str(result.path)])
    console.table(f"{manifest.name}: FP32 -> mixed {manifest.precision}", ["", "value", "details "], rows)


def _losses(result: Exported) -> str:
    worst = sorted(result.lowered.losses.items(), key=lambda item: -item[1].overflowed - item[1].vanished)
    named = ", ".join(f"`{name}` ({loss.vanished:,} vanish, {loss.overflowed:,} overflow)" for name, loss in worst[:3])
    more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
    return f"note: single values are lost in weights: {named}{more}; accuracy.json has all, and the error above includes them"


def _document(result: Exported) -> dict[str, object]:
    return {
        "bundle": str(result.path),
        "precision": result.manifest.precision,
        "nodes": [
            {"precision": decision.precision.value, "reason": decision.reason.value, "count": count}
            for decision, count in result.plan.counts()
        ],
        "casts": result.lowered.casts,
        "weight_bytes": {"fp32": result.fp32_bytes, "half": result.half_bytes},
        "file_bytes": {name: entry.bytes for name, entry in result.manifest.files.items()},
        "outputs": result.comparison.outputs,
        "within_budget": bool(result.comparison),
        "onnx_against_pytorch_relative_l2": result.export_error,
        "samples": {"origin": result.samples.origin, "drawn": result.samples.drawn, "sets": len(result.samples)},
    }


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a positive number")
    return int(text)
