"""`demi export`: convert a trained FP32 model to a half-precision bundle."""

from __future__ import annotations

import argparse
import contextlib
import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from demi.bundles.drafts import remove_abandoned
from demi.cli.console import Console
from demi.cli.engine_options import (
    add_engine_options,
    engine_document,
    engine_options,
    print_engine,
)
from demi.cli.export_engine import add_engine, build_beside, is_bundle, require_builder
from demi.cli.export_notes import notes_of, warnings_of, why_not_faster
from demi.cli.export_result import document, print_result
from demi.cli.no_run import check_no_run, run_unproven
from demi.cli.options import add_json, positive
from demi.cli.planning import (
    DEFAULT_PRECISION,
    add_model,
    add_plan_options,
    add_source_options,
    model_path,
    plan_settings,
    source_options,
)
from demi.cli.run_folder import take_run, wider_in_training
from demi.errors import InputError, OverBudgetError

if TYPE_CHECKING:
    from demi.cli.for_cpu import Making
    from demi.exporter.planning.find_plan import PlanSettings
    from demi.exporter.request import Exported, ExportRequest
    from demi.proofs.record import Proof


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi export`."""
    add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=_folder,
        metavar="DIR",
        help="the model's folder (default: models/NAME), in which the version becomes a folder",
    )
    parser.add_argument(
        "--model-version",
        type=positive,
        metavar="N",
        help="version of the bundle (default: the one after the newest in the model's folder)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a bundle: that of --model-version, or else the newest"
    )
    add_source_options(parser)
    add_plan_options(parser)
    contents = parser.add_argument_group("the bundle")
    contents.add_argument(
        "--plan", type=Path, metavar="JSON", help="apply this plan.json instead of searching for a plan"
    )
    contents.add_argument(
        "--no-run",
        action="store_true",
        help="convert an .onnx file by operator lists without running it, for operators that only the target has; "
        "its accuracy is then unproven",
    )
    contents.add_argument(
        "--for",
        dest="target",
        choices=["cpu"],
        help="choose the format for this machine's CPU (unless given), plan for a CPU's costs and OpenVINO's kernels, and "
        "judge and time the bundle on it",
    )
    contents.add_argument("--half-io", action="store_true", help="make float inputs and outputs half as well")
    contents.add_argument("--no-reference", action="store_true", help="leave the FP32 model out of the bundle")
    contents.add_argument("--no-report", action="store_true", help="do not write report.html")
    contents.add_argument(
        "--max-batch", type=positive, default=32, metavar="N", help="most rows in one run (default: 32)"
    )
    add_engine_options(parser)
    add_json(parser)


def _folder(text: str) -> Path:
    """Parse the name of a folder; an empty one comes from a variable that was not set."""
    if not text:
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return Path(text)


def run(args: argparse.Namespace, console: Console) -> int:
    """Export, report what is worth knowing, and print the result."""
    run_folder = take_run(args)
    _settle_precision(args, console)
    if args.no_run:
        check_no_run(args)
    engine = engine_options(args)
    if args.no_run:
        return run_unproven(_request_with_note(args, console), args.json, console)
    if engine is not None:
        require_builder(engine)
    if args.model is not None and is_bundle(args.model):
        return add_engine(args, engine, console)
    with _rare_collections():
        result, proof = _export_for(args, console)
    built = build_beside(result.path, engine, console) if engine is not None else None
    _report(result, args, console)
    for line in wider_in_training(run_folder) if run_folder is not None else ():
        console.note(f"note: {line}")
    if args.json:
        console.json(document(result) | ({"engine": engine_document(built)} if built else {}))
    else:
        print_result(result, console)
        if built:
            print_engine(built, console)
    if proof is not None:
        _require_right(result.path, proof, console)
    return 0


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Collect garbage less often: graphs are many small objects that stay, and searching them is a tenth of an export."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _settle_precision(args: argparse.Namespace, console: Console) -> None:
    """Set the formats to try: the one that an option chose, or with `--for cpu` those of this CPU; a note gives the reason."""
    if args.target and (args.no_run or args.tensorrt):
        raise InputError("--for cpu needs a bundle that runs in OpenVINO", hint="leave out --no-run and --tensorrt")
    args.formats = (args.precision or DEFAULT_PRECISION,)
    if args.precision is None and args.target:
        from demi.runtime.openvino.capability import formats_for, read_cpu

        args.formats, why = formats_for(read_cpu())
        if args.half_io or args.plan:  # which are for one format
            args.formats = args.formats[:1]
        console.note(f"note: exporting in {args.formats[0]}: {why}")
    args.precision = args.formats[0]


def _export_for(args: argparse.Namespace, console: Console) -> tuple[Exported, Proof | None]:
    """Export; with `--for cpu` also return what this CPU makes of the bundle."""
    request = _request_with_note(args, console)
    for left in remove_abandoned(request.target):
        console.note(f"note: removed `{left.name}`, left by a process that crashed while writing here")
    if not args.target:
        return _export(request, console), None
    from demi.cli.for_cpu import export_for_cpu

    best = export_for_cpu(request, args.formats, _making(console))
    return best.exported, best.proof


def _making(console: Console) -> Making:
    """Return how bundles are made and judged for this machine's CPU."""
    from demi.bundles.bundle import open_bundle
    from demi.cli.for_cpu import Making
    from demi.engines.key import key_path
    from demi.proofs.prove import promise_of, proof_of
    from demi.runtime.cores import usable_cores

    def judge(path: Path) -> Proof:
        with console.step("judging half on this CPU"):
            return proof_of(open_bundle(path), usable_cores(), key_path())

    def promise(path: Path, precision: str) -> float:
        with console.step(f"timing {precision} on this CPU"):
            return promise_of(open_bundle(path), precision, usable_cores())

    return Making(lambda request: _export(request, console), judge, promise, lambda text: console.note(f"note: {text}"))


def _require_right(path: Path, proof: Proof, console: Console) -> None:
    """Print what half does on this CPU; OverBudgetError if the CPU itself computes the half model beyond the budget."""
    if proof.best is None and proof.planned is not None:
        raise OverBudgetError(
            f"the bundle was written, but on this CPU it is {proof.planned.why}",
            where=str(path),
            hint="keep the nodes that demi explain names in FP32 with --keep-fp32",
        )
    console.note(f"note: {proof.verdict()}")


def _export(request: ExportRequest, console: Console) -> Exported:
    from demi.exporter.pipeline import export_bundle

    with console.quiet():
        return export_bundle(request, console.step, console.warn)


def _request_with_note(args: argparse.Namespace, console: Console) -> ExportRequest:
    """Return the request; where it becomes the next version of a model that is there, a note says so."""
    from demi.bundles.find import versions

    request = _request(args)
    existing = versions(request.output)
    if args.model_version is None and existing and request.version not in existing:
        held = f"version {existing[0]}" if len(existing) == 1 else f"{len(existing)} versions"
        console.note(
            f"note: {request.output} holds {held}; this becomes version {request.version} (--force replaces the newest)"
        )
    return request


def _report(result: Exported, args: argparse.Namespace, console: Console) -> None:
    """Write warnings and notes about an export to stderr."""
    for line in warnings_of(result):
        console.warn(line)
    for line in notes_of(result):
        console.note(f"note: {line}")
    if not args.tensorrt and (why := why_not_faster(result.manifest.precision)):
        console.note(f"note: {why}")


def _for_target(settings: PlanSettings, args: argparse.Namespace) -> PlanSettings:
    """Return the settings, with `--for cpu` with a CPU's costs (unless given), and OpenVINO's kernels if it is installed."""
    from demi.exporter.planning.costs import CPU_CORE
    from demi.exporter.planning.fused_kernels import fused_by_openvino
    from demi.runtime.openvino.session import openvino_version

    if not args.target:
        return settings
    device = settings.device if args.costs else CPU_CORE
    return replace(settings, device=device, fusing=fused_by_openvino if openvino_version() else None)


def _request(args: argparse.Namespace) -> ExportRequest:
    from demi.bundles.find import version_to_write
    from demi.bundles.manifest import name_of_file
    from demi.exporter.request import ExportRequest
    from demi.plan import read_plan

    if args.precision == "bf16" and args.half_io:
        raise InputError(
            "--half-io needs --fp16, because NumPy and most clients have no bfloat16", hint="leave out --half-io"
        )
    output = args.output or Path("models") / name_of_file(model_path(args).stem)
    return ExportRequest(
        source=model_path(args),
        output=output,
        settings=_for_target(plan_settings(args), args),
        plan=read_plan(args.plan) if args.plan else None,
        version=version_to_write(output, args.model_version, force=args.force),
        options=source_options(args),
        optimize=not args.no_optimize,
        reference=not args.no_reference,
        report=not args.no_report,
        max_batch=args.max_batch,
        force=args.force,
        samples_origin=str(args.sample) if args.sample else "",
    )
