"""Options and table rows that `demi export` and `demi calibrate` share: where a model comes from, how it is planned."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from demi.accuracy.budget import parse_budget
from demi.cli.console import Console, significant
from demi.cli.options import add_budget, seconds
from demi.errors import InputError
from demi.tensors import parse_spec

if TYPE_CHECKING:
    from demi.exporter.planning.find_plan import Planned, PlanSettings
    from demi.exporter.sources.options import SourceOptions
    from demi.plan import Decision, PrecisionPlan

EXPLAINED = 10
"""How many nodes the console explains; plan.json has all."""

TYPE_REASONS = ("no-half-type", "unknown-operator")
"""Reasons that come from an operator's schema: the table says which operators they are."""

OPERATORS_NAMED = 4
"""How many operators a row of the table names."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model: a file or folder, or `--hf` for a folder of transformers."""
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        help=".pt2 (torch.export), .pt (TorchScript, module or state_dict), .safetensors, .onnx or a transformers folder",
    )
    parser.add_argument(
        "--hf", type=Path, metavar="DIR", help="a folder that transformers' save_pretrained wrote, as MODEL; see --task"
    )


def model_path(args: argparse.Namespace) -> Path:
    """Where the model is; InputError when it is said twice or not at all."""
    path: Path | None = args.model or args.hf
    if path is None:
        raise InputError("which model?", hint="give a model file, or a transformers folder with --hf DIR")
    if args.model and args.hf:
        raise InputError("a model and --hf are given", where=f"{args.model}, --hf {args.hf}", hint="leave one out")
    if args.hf and not args.hf.is_dir():
        raise InputError("--hf wants a folder", where=str(args.hf), hint="give model files without --hf")
    return path


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what a model file leaves open."""
    group = parser.add_argument_group("the source")
    group.add_argument(
        "--sample",
        "--data",
        dest="sample",
        metavar="NPZ",
        help="real inputs by name: an .npz file, a folder of them, or package.module:function that yields them; ranges and accuracy are measured on them",
    )
    group.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SPEC",
        help="an input as name:dtype[dims], e.g. input_ids:int64[batch,seq]; names are free axes; repeatable",
    )
    group.add_argument("--output-names", default="", metavar="A,B", help="names for the outputs, in order")
    group.add_argument(
        "--model", dest="factory", metavar="PKG.MOD:FACTORY", help="builds the module that a state_dict belongs to"
    )
    group.add_argument("--task", metavar="TASK", help="what a transformers folder is for, e.g. text-classification")
    group.add_argument(
        "--trust-pickle",
        action="store_true",
        help="load a file that holds code, such as a pickled module: runs that code",
    )
    group.add_argument("--opset", type=positive, metavar="N", help="ONNX opset to export PyTorch models with")
    group.add_argument("--seed", type=not_negative, default=0, metavar="N", help="seed for drawn inputs (default: 0)")


def source_options(args: argparse.Namespace) -> SourceOptions:
    """What those options say; the samples are read."""
    from demi.calibration.samples import load_arrays
    from demi.exporter.sources.options import SourceOptions

    return SourceOptions(
        samples=tuple(load_arrays(args.sample)) if args.sample is not None else (),
        inputs=tuple(parse_spec(text) for text in args.input),
        output_names=tuple(name.strip() for name in args.output_names.split(",") if name.strip()),
        factory=args.factory,
        trust_pickle=args.trust_pickle,
        task=args.task,
        opset=args.opset,
        seed=args.seed,
    )


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """The options that decide a plan."""
    group = parser.add_argument_group("the precision plan")
    half = group.add_mutually_exclusive_group()
    half.add_argument(
        "--fp16", action="store_const", dest="precision", const="fp16", help="IEEE half precision (default)"
    )
    half.add_argument(
        "--bf16", action="store_const", dest="precision", const="bf16", help="bfloat16: float32's range, fewer digits"
    )
    parser.set_defaults(precision="fp16")
    add_budget(group, "relative_l2=1e-2")
    group.add_argument(
        "--keep-fp32",
        action="append",
        default=[],
        metavar="NODE",
        help="node name, glob or operator type to keep in FP32; repeatable",
    )
    group.add_argument(
        "--force-half",
        action="append",
        default=[],
        metavar="NODE",
        help="node name, glob or operator type to make half whatever was measured; repeatable",
    )
    group.add_argument(
        "--no-optimize", action="store_true", help="plan the graph as it is: fold no constants, fuse no operators"
    )
    group.add_argument(
        "--no-calibrate", action="store_true", help="decide by operator lists alone: faster, and blind to values"
    )
    group.add_argument(
        "--search-seconds",
        type=seconds,
        default=60.0,
        metavar="S",
        help="most seconds to search for a plan (default: 60)",
    )
    group.add_argument(
        "--costs",
        type=Path,
        metavar="JSON",
        help="cost table of the target device: bandwidth, half_flops, single_flops, launch_s, rows",
    )


def plan_settings(args: argparse.Namespace) -> PlanSettings:
    """What those options say."""
    from demi.exporter.planning.costs import DeviceCosts, read_costs
    from demi.exporter.planning.find_plan import PlanSettings

    return PlanSettings(
        precision=args.precision,
        budget=parse_budget(args.budget),
        calibrate=not args.no_calibrate,
        keep_fp32=tuple(args.keep_fp32),
        force_half=tuple(args.force_half),
        search_seconds=args.search_seconds,
        device=read_costs(args.costs) if args.costs else DeviceCosts(),
        half_io=getattr(args, "half_io", False),
    )


def plan_rows(planned: Planned) -> list[list[str]]:
    """Table rows: nodes by precision and reason, and what stays in FP32."""
    rows = decision_rows(planned.plan)
    if share := planned.fp32_share:
        details = f"of the FLOPs, and {share.tensor_bytes:.1%} of the tensor bytes"
        rows.append(["FP32 share", f"{share.flops:.1%}", details])
    return rows


def decision_rows(plan: PrecisionPlan) -> list[list[str]]:
    """Table rows: nodes by precision and reason."""
    rows = []
    for decision, count in plan.counts():
        precision = plan.precision if decision.is_half else "fp32"
        rows.append([f"nodes in {precision}", str(count), decision.reason.value + _details(plan, decision, count)])
    return rows


def _details(plan: PrecisionPlan, decision: Decision, count: int) -> str:
    """What stands behind a row: the evidence of a single node, and which operators have no half type."""
    if count == 1:
        return f": {decision.evidence}" if decision.evidence else ""
    if decision.reason.value not in TYPE_REASONS:
        return ""
    return f": {operators(plan, decision.reason.value)}; {decision.evidence}"


def operators(plan: PrecisionPlan, reason: str) -> str:
    """The operators that have a reason, the most frequent first, with how often."""
    tally = Counter(decision.op_type for decision in plan.computing if decision.reason.value == reason)
    named = ", ".join(f"{count} {op}" for op, count in tally.most_common(OPERATORS_NAMED))
    return named + (f" and {len(tally) - OPERATORS_NAMED} other operators" if len(tally) > OPERATORS_NAMED else "")


def explain_plan(planned: Planned, console: Console) -> None:
    """The nodes that matter most: one for each reason to stay FP32, then the largest shares of the error."""
    decisions = planned.plan.computing
    single = [d for d in decisions if not d.is_half and d.evidence]
    half = sorted((d for d in decisions if d.is_half and d.share), key=lambda d: -(d.share or 0.0))
    chosen = [*_one_of_each_reason(single), *half][:EXPLAINED]
    if chosen:
        columns = ["node", "operator ", "precision ", "why "]
        console.table("the nodes that matter (plan.json has all)", columns, [_explained(d) for d in chosen])
    if planned.first_divergence:
        console.data(f"if everything the rules allow were half: {planned.first_divergence}")


def _explained(decision: Decision) -> list[str]:
    why = f"{decision.reason.value}: {decision.evidence}"
    if decision.is_half:
        why = f"{decision.share or 0.0:.1%} of the predicted squared error"
    return [decision.node, decision.op_type, "half" if decision.is_half else "fp32", why]


def predicted_text(planned: Planned, output: str) -> str:
    """`; predicted 0.00161`, where there is a prediction."""
    return f" (predicted {significant(planned.predicted[output])})" if output in planned.predicted else ""


def not_negative(text: str) -> int:
    """A whole number from zero on, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number from 0 on")
    return int(text)


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a positive number")
    return int(text)


def _one_of_each_reason(decisions: list[Decision]) -> list[Decision]:
    """The decisions, one of each reason first."""
    first = {decision.reason: decision for decision in reversed(decisions)}
    leading = [decision for decision in decisions if first[decision.reason] is decision]
    return leading + [decision for decision in decisions if first[decision.reason] is not decision]
