"""`demi export`: convert a trained FP32 model to a half-precision bundle."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
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
from demi.cli.options import add_json, positive
from demi.cli.plan_tables import explain_plan, plan_rows, predicted_text, unusable_inputs
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
from demi.errors import DemiError, InputError, OverBudgetError

if TYPE_CHECKING:
    from demi.accuracy.token_agreement import TokenAgreement
    from demi.calibration.samples import Samples
    from demi.cli.for_cpu import Making
    from demi.exporter.planning.find_plan import PlanSettings
    from demi.exporter.request import Exported, ExportRequest
    from demi.exporter.rescaling.rescale import Rescaling
    from demi.exporter.tensorrt.build import BuiltEngine
    from demi.exporter.tensorrt.builder import EngineOptions
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
        _require_builder(engine)
    if args.model is not None and _is_bundle(args.model):
        return _add_engine(args, engine, console)
    result, proof = _export_for(args, console)
    built = _build_beside(result.path, engine, console) if engine is not None else None
    _report(result, args, console)
    for line in wider_in_training(run_folder) if run_folder is not None else ():
        console.note(f"note: {line}")
    if args.json:
        console.json(_document(result) | ({"engine": engine_document(built)} if built else {}))
    else:
        _print(result, console)
        if built:
            print_engine(built, console)
    if proof is not None:
        _require_right(result.path, proof, console)
    return 0


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
    for line in _warnings(result):
        console.warn(line)
    for line in _notes(result):
        console.note(f"note: {line}")
    if not args.tensorrt and (why := _why_not_faster(result.manifest.precision)):
        console.note(f"note: {why}")


def _warnings(result: Exported) -> Iterator[str]:
    """Yield the reasons to trust the result less than its figures suggest."""
    from demi.exporter.sources.samples import EXAMPLES

    if result.samples.drawn:
        yield f"ranges and accuracy are only estimates, measured on {result.samples.origin}; give real inputs with --sample"
    if result.samples.origin == EXAMPLES:
        yield f"measured on {_rows_of(result.samples)} only, {EXAMPLES}: give inputs of your own with --sample"
    if result.fails_here:
        yield f"the half model cannot run on this CPU, where `demi serve` answers with its FP32 reference: {result.fails_here}"
    yield from result.warnings
    for line in (*result.conversion.comparison.unmeasured(), *unusable_inputs(result.samples)):
        yield f"{line}; the error of half precision cannot be measured there"


def _rows_of(samples: Samples) -> str:
    """Return the number of rows in all samples, along the first axis of their first input."""
    first = [next(iter(feeds.values()), None) for feeds in samples.feeds]
    rows = sum(array.shape[0] if array is not None and array.ndim else 1 for array in first)
    return "1 row" if rows == 1 else f"{rows} rows"


def _notes(result: Exported) -> Iterator[str]:
    from demi.exporter.planning.uneven import in_words

    if result.conversion.lowered.losses:
        yield _losses(result)
    yield from in_words(result.conversion.uneven)
    yield from result.notes
    if (rescaling := result.conversion.rescaling) is not None and rescaling.why_not:
        yield f"not rescaled: {rescaling.why_not}"
    if result.no_report:
        yield result.no_report
    if unjoined := result.manifest.batch.reason:
        yield f"requests are not batched: {unjoined}"
    for axis in result.manifest.batch.pad.axes:
        yield f"requests of different lengths may share a run: `{axis}` is padded without changing the answers"
    yield from result.manifest.varying.describe()


def _require_builder(engine: EngineOptions) -> None:
    """Raise MissingError before the long part when no engine can be built here."""
    from demi.exporter.tensorrt.build import require_builder

    require_builder(engine.device)


def _is_bundle(path: Path) -> bool:
    """Return whether a model's path is that of a bundle, or of a folder of bundles."""
    from demi.bundles.find import bundles_at

    return bool(bundles_at(path))


def _add_engine(args: argparse.Namespace, engine: EngineOptions | None, console: Console) -> int:
    """Build an engine for an existing bundle."""
    if engine is None:
        raise InputError(
            "this is already a bundle, or a folder of bundles",
            where=str(args.model),
            hint="add --tensorrt to build an engine for it",
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
    """Build an engine for the bundle just written, which stays even when the build fails."""
    try:
        return _build(path, engine, console)
    except DemiError:
        console.note(f"note: the bundle was written without an engine: {path}")
        raise


def _why_not_faster(precision: str) -> str | None:
    from demi.runtime.base import Device
    from demi.runtime.cuda.bindings import find_gpu
    from demi.runtime.cuda.capability import why_not_faster
    from demi.runtime.openvino.capability import lacking_units, read_cpu
    from demi.runtime.openvino.session import openvino_version

    gpu = find_gpu(Device("cuda"))
    if gpu is None and openvino_version() and (cpu := read_cpu()).has_units(precision):
        lacking = lacking_units(cpu, precision)
        return (
            f"{lacking}: half saves memory there, and `demi bench` measures whether it saves time" if lacking else None
        )
    return why_not_faster(gpu, precision)


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


def _print(result: Exported, console: Console) -> None:
    """Print one table (nodes by precision and reason, sizes, error against budget, path) and then the reasons."""
    from demi.accuracy.matching import describe_changes

    manifest, planned, lowered = result.manifest, result.conversion.planned, result.conversion.lowered
    share = result.half_bytes / result.fp32_bytes if result.fp32_bytes else 1.0
    source = " and ".join(result.floats) or "integers"
    rows = [
        *plan_rows(planned),
        *rescaling_rows(result.conversion.rescaling),
        *(["rewritten", str(len(form.nodes)), f"nodes: {form}"] for form in result.conversion.forms),
        ["casts", str(lowered.casts), "where the plan crosses from one precision to the other"],
        ["weights", mebibytes(result.half_bytes), f"{share:.0%} of the {mebibytes(result.fp32_bytes)} in {source}"],
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
                    describe_changes(diff.changes, diff.found, diff.changed),
                ]
            )
        if diff.limits.agree is not None and diff.agree is not None:
            rows.append([f"choices of {diff.output}", f"{diff.agree:.4f}", "share of elements that agree"])
    rows += token_rows(result.conversion.tokens)
    if result.export_error is not None:
        types = "" if result.half_types else ", both in FP32"
        rows.append(["ONNX against PyTorch", significant(result.export_error), f"relative L2{types}"])
    rows.append(
        [
            "measured on",
            str(len(result.samples)),
            f"{'set' if len(result.samples) == 1 else 'sets'} of inputs: {result.samples.origin}",
        ]
    )
    rows.append(["bundle", f"v{manifest.version}", str(result.path)])
    console.table(headline(result), ["", "value", "details "], rows)
    explain_plan(planned, console)


def token_rows(tokens: TokenAgreement | None) -> list[list[str]]:
    """Return a table row for the tokens that half generates as FP32 does; none for a model that does not generate."""
    if tokens is None:
        return []
    first, last = tokens.by_step[0], tokens.by_step[-1]
    errors = f"error of the logits {significant(first.relative_l2)} at step {first.first}, {significant(last.relative_l2)} at step {last.last}"
    return [
        [
            "tokens like FP32",
            f"{tokens.same:.2%}",
            f"of {tokens.tokens}; {tokens.whole_texts} of {tokens.texts} texts throughout; {errors}",
        ]
    ]


def rescaling_rows(rescaling: Rescaling | None) -> list[list[str]]:
    """A table row for what was multiplied by powers of two, and what that spares; none where nothing was."""
    if rescaling is None or (certificate := rescaling.certificate) is None:
        return []
    spared = f"for their range, {certificate.before.nodes} -> {certificate.after.nodes} nodes stay FP32"
    count = len(certificate.constants) + len(certificate.numbers)
    return [["rescaled", str(count), f"constants x 2^k, same FP32 answers to the last bit; {spared}"]]


def headline(result: Exported) -> str:
    """Return the title: `m: FP32 -> mixed fp16, 98% of the FLOPs in half`, or that the model is unchanged."""
    name, source = result.manifest.name, " and ".join(result.half_types or result.floats) or "only integers"
    planned, precision = result.conversion.planned, result.manifest.precision
    if not planned.plan.half_nodes:
        return f"{name}: {source}, unchanged"
    if planned.fp32_share is None:
        return f"{name}: {source} -> mixed {precision}"
    if result.gain is not None and result.gain.objection:
        return f"{name}: {source}, {1 - planned.fp32_share.flops:.1%} of the FLOPs in {precision}"
    return f"{name}: {source} -> mixed {precision}, {1 - planned.fp32_share.flops:.0%} of the FLOPs in half"


def _losses(result: Exported) -> str:
    losses = result.conversion.lowered.losses
    worst = sorted(losses.items(), key=lambda item: -item[1].overflowed - item[1].vanished)
    named = ", ".join(
        f"`{name}` ({loss.vanished:,} become zero, {loss.overflowed:,} overflow)" for name, loss in worst[:3]
    )
    more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
    return (
        f"weights lose values in half precision: {named}{more}; the measured error includes this, accuracy.json has all"
    )


def _document(result: Exported) -> dict[str, object]:
    planned = result.conversion.planned
    return {
        "bundle": str(result.path),
        "precision": result.manifest.precision,
        "nodes": [
            {"precision": decision.precision.value, "reason": decision.reason.value, "count": count}
            for decision, count in planned.plan.counts()
        ],
        "rescaled": _rescaled(result.conversion.rescaling),
        "stable_forms": result.conversion.forms,
        "casts": result.conversion.lowered.casts,
        "fp32_share": planned.fp32_share,
        "weight_bytes": {"fp32": result.fp32_bytes, "half": result.half_bytes},
        "file_bytes": {name: entry.bytes for name, entry in result.manifest.files.items()},
        "outputs": result.conversion.comparison.outputs,
        "predicted_relative_l2": planned.predicted,
        "source_floats": [*result.half_types, *result.floats],
        "within_budget": bool(result.conversion.comparison),
        "generation": result.conversion.tokens,
        "batch": result.manifest.batch,
        "varying": result.manifest.varying,
        "fails_on_cpu": result.fails_here or None,
        "onnx_against_pytorch_relative_l2": result.export_error,
        "samples": {"origin": result.samples.origin, "drawn": result.samples.drawn, "sets": len(result.samples)},
    }


def _rescaled(rescaling: Rescaling | None) -> object:
    """Return the certificate's account of what was rescaled, for JSON; None if nothing was."""
    if rescaling is None or (certificate := rescaling.certificate) is None:
        return None
    return {
        "constants": len(certificate.constants),
        "numbers": len(certificate.numbers),
        "before": certificate.before,
        "after": certificate.after,
    }
