"""`demi calibrate`: the ranges and the precision plan of a model, without converting it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console
from demi.cli.options import add_device, add_json
from demi.cli.plan_tables import explain_plan, plan_rows, unusable_inputs
from demi.cli.planning import (
    add_model,
    add_plan_options,
    add_source_options,
    model_path,
    plan_settings,
    source_options,
)
from demi.errors import InputError
from demi.files import check_writable, output_folder

if TYPE_CHECKING:
    from demi.exporter.pipeline import Calibrated
    from demi.exporter.planning.measured_costs import MeasuredCosts, Timer
    from demi.runtime.base import Device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi calibrate`."""
    add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder for MODEL.plan.json and MODEL.ranges.json (default: here)",
    )
    add_source_options(parser)
    add_plan_options(parser)
    parser.add_argument(
        "--profile",
        action="store_true",
        help="measure the cost of each node on --device and plan with it; writes MODEL.costs.json, which --costs reads",
    )
    parser.add_argument(
        "--tensorrt",
        action="store_true",
        help="with --profile: time the layers of TensorRT engines instead of ONNX Runtime's nodes (needs --device cuda)",
    )
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure, plan, and write the files; `demi export --plan` applies the plan, edited or not."""
    if args.profile and args.no_calibrate:
        raise InputError(
            "--profile measures costs for the planner, which --no-calibrate skips", hint="leave one of them out"
        )
    if args.device.kind == "cuda" and not args.profile:
        raise InputError("--device selects where costs are measured", hint="add --profile, or leave out --device")
    if args.tensorrt and not (args.profile and args.device.kind == "cuda"):
        raise InputError("engines are timed on a GPU", hint="add --profile --device cuda, or leave out --tensorrt")
    with output_folder(args.output):
        plan_path, ranges_path, costs_path = targets = _targets(args)
        for path in targets:
            check_writable(path)
        result = _calibrate(args, console)
        plan_path.write_bytes(result.planned.plan.to_json())
        result.planned.profile.save(ranges_path)
        if result.measured is not None:
            _write_costs(result.measured, costs_path, console)
    if result.samples.drawn:
        console.warn(f"ranges are only estimates, measured on {result.samples.origin}; give real inputs with --sample")
    for line in unusable_inputs(result.samples):
        console.warn(line)
    written = {"plan": plan_path, "ranges": ranges_path} | ({"costs": costs_path} if result.measured else {})
    if args.json:
        console.json({kind: str(path) for kind, path in written.items()} | _document(result))
    else:
        title = f"{model_path(args).stem}: plan for {result.planned.plan.precision}"
        console.table(title, ["", "value", "details "], plan_rows(result.planned))
        explain_plan(result.planned, console)
        for kind, path in written.items():
            console.data(f"{kind}: {path}")
    return 0


def _targets(args: argparse.Namespace) -> list[Path]:
    """Return the files for the plan, the ranges and the costs."""
    stem = model_path(args).stem
    return [args.output / f"{stem}.{kind}.json" for kind in ("plan", "ranges", "costs")]


def _calibrate(args: argparse.Namespace, console: Console) -> Calibrated:
    model, options, settings = model_path(args), source_options(args), plan_settings(args)
    from demi.exporter.pipeline import calibrate_model

    profiled_on, timer = _profiled_on(args), _timer(args)
    with console.quiet():
        return calibrate_model(
            model, options, settings, str(args.sample or ""), not args.no_optimize, profiled_on, console.step, timer
        )


def _timer(args: argparse.Namespace) -> Timer | None:
    """Return what times nodes instead of ONNX Runtime; raise MissingError before the work when it cannot."""
    if not args.tensorrt:
        return None
    from demi.exporter.tensorrt.build import require_builder
    from demi.exporter.tensorrt.layer_times import engine_node_times

    require_builder(args.device)
    return engine_node_times


def _profiled_on(args: argparse.Namespace) -> Device | None:
    """Return the device to measure nodes on; on a GPU, make kernels run one at a time, so that times are separate."""
    if not args.profile:
        return None
    device: Device = args.device
    if device.kind == "cuda" and not args.tensorrt:
        # Launches return before their kernels end, and ONNX Runtime's profiler looks at launches. CUDA reads this once.
        os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
    return device


def _write_costs(measured: MeasuredCosts, path: Path, console: Console) -> None:
    """Write `MODEL.costs.json`; note when the device computes half nodes in FP32."""
    from demi.exporter.planning.measured_costs import costs_json

    path.write_bytes(costs_json(measured))
    if measured.wide:
        console.note(
            f"note: {measured.device} has no half kernels for {measured.wide} of {measured.half} nodes, "
            "and computes them in FP32, where half gains nothing"
        )


def _document(result: Calibrated) -> dict[str, object]:
    planned = result.planned
    return {
        "precision": planned.plan.precision,
        "nodes": [
            {"precision": decision.precision.value, "reason": decision.reason.value, "count": count}
            for decision, count in planned.plan.counts()
        ],
        "predicted_relative_l2": planned.predicted,
        "fp32_share": planned.fp32_share,
        "first_divergence_if_all_half": planned.first_divergence,
        "trials": planned.trials,
    }
