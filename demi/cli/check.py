"""`demi check`: test for CI whether bundles meet their accuracy budget and are no worse than their baseline."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from demi.accuracy.budget import parse_budget
from demi.cli.check_tables import print_check
from demi.cli.console import Console
from demi.cli.options import add_budget, add_json, add_runtime, not_negative
from demi.errors import InputError
from demi.files import check_writable, write_whole
from demi.runtime.base import Device

if TYPE_CHECKING:
    from demi.calibration.gate.baseline import Entry
    from demi.calibration.gate.check import CheckOptions, Outcome

SUMMARY = "GITHUB_STEP_SUMMARY"
"""Environment variable with the path of a GitHub job's summary."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi check`."""
    parser.add_argument(
        "bundles",
        type=Path,
        nargs="+",
        metavar="BUNDLE",
        help="a version's folder, a model's folder (its newest version), or a folder of models (each of them)",
    )
    add_budget(parser, "the bundle's own")
    parser.add_argument(
        "--device",
        type=Device.parse,
        default=Device(),
        metavar="DEVICE",
        help="where the half model runs: cpu (default; half is emulated), cuda or cuda:N; FP32 always runs on the CPU",
    )
    add_runtime(parser, "the emulator")
    add_json(parser)
    _add_data_options(parser)
    _add_baseline_options(parser)
    group = parser.add_argument_group("reports")
    group.add_argument("--junit", type=Path, metavar="XML", help="write the result as JUnit XML")
    group.add_argument(
        "--markdown",
        type=Path,
        metavar="MD",
        help="write the result as Markdown (in a GitHub job, also to its summary)",
    )


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("your data")
    group.add_argument(
        "--data",
        metavar="NPZ",
        help="inputs by name, samples along the first axis: an .npz file, a folder of them, or package.module:function that yields them; for a bundle of raw inputs also a .csv, .tsv or .jsonl with a column `label`, or a folder with one of files for each label",
    )
    group.add_argument("--labels", metavar="NAME", help="the array in the data that contains the correct answers")
    group.add_argument(
        "--metric",
        metavar="METRIC",
        help="top1 (or accuracy), top5, f1, miou, dice or spearman, prefixed with OUTPUT: if there are several outputs; or your own as module:function",
    )
    group.add_argument(
        "--max-loss",
        type=_limit,
        metavar="LOSS",
        help="largest loss of the metric from FP32 to half that passes, e.g. 0.002; without it a loss is only a warning",
    )


def _add_baseline_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the baseline")
    group.add_argument(
        "--baseline",
        type=Path,
        metavar="JSON",
        help="earlier measurements; fail when a measure is worse by more than its tolerance",
    )
    group.add_argument(
        "--write-baseline",
        action="store_true",
        help="write the current measurements to the --baseline file, for review",
    )
    group.add_argument(
        "--tolerance",
        action="append",
        default=[],
        metavar="MEASURE=VALUE",
        help="with --write-baseline: how much worse a measure may become, as a number or a share such as relative_l2=20%%; repeatable",
    )
    group.add_argument(
        "--on-plan-change",
        choices=("ignore", "warn", "fail"),
        default="warn",
        help="how to treat a node that changed precision: ignore, warn (default) or fail",
    )
    group.add_argument(
        "--seed", type=not_negative, default=2026, metavar="N", help="seed of the bootstrap (default: 2026)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Check every bundle, print and write the results, and return 0 if all passed."""
    from demi.calibration.gate.baseline import parse_tolerances
    from demi.calibration.gate.check import check_bundles, exit_code

    _require_writable(args)
    options = _options(args)
    known, tolerances = _known_models(args), parse_tolerances(args.tolerance)
    bundles = [bundle for path in args.bundles for bundle in _bundles_at(path)]
    outcomes = check_bundles(bundles, options, console.step)
    _show(outcomes, args, console)
    _write_reports(outcomes, args, console)
    if args.write_baseline:
        _write_baseline(outcomes, known, tolerances, args, console)
    return exit_code(outcomes)


def _bundles_at(path: Path) -> list[Path]:
    """Return `path`, or, for a folder of models, the folder of each; the check itself reports what is not a bundle."""
    from demi.bundles.find import models_below, versions

    return [path] if versions(path) else models_below(path) or [path]


def _require_writable(args: argparse.Namespace) -> None:
    """Raise InputError before anything is measured when a result could not be written."""
    if args.tolerance and not args.write_baseline:
        raise InputError(
            "--tolerance needs --write-baseline",
            hint="edit the tolerances in the baseline's file, or add --write-baseline",
        )
    if args.baseline is None and args.write_baseline:
        raise InputError("--write-baseline needs a file", hint="name it with --baseline FILE")
    written = [path for path in (args.junit, args.markdown, args.baseline if args.write_baseline else None) if path]
    for path in written:
        check_writable(path)
    if len({path.resolve() for path in written}) < len(written):
        raise InputError("two results would be written to the same file", hint="give each its own file")


def _options(args: argparse.Namespace) -> CheckOptions:
    from demi.calibration.gate.baseline import read_baseline
    from demi.calibration.gate.check import CheckOptions
    from demi.calibration.gate.data import read_data
    from demi.calibration.gate.gates import Level, Rules

    if args.labels is not None and args.data is None:
        raise InputError("--labels needs --data, which contains the array", hint="name the file with --data")
    levels = {"ignore": None, "warn": Level.WARNING, "fail": Level.ERROR}
    return CheckOptions(
        budget=parse_budget(args.budget) if args.budget else None,
        data=read_data(args.data, args.labels) if args.data is not None else None,
        metric=args.metric,
        baseline=read_baseline(args.baseline) if args.baseline and not args.write_baseline else None,
        rules=Rules(args.max_loss, levels[args.on_plan_change]),
        device=args.device,
        seed=args.seed,
        runtime="auto" if args.runtime == "onnxruntime" else args.runtime,
    )


def _known_models(args: argparse.Namespace) -> dict[str, Entry]:
    """Return the models of the baseline to be updated: other models and tolerances are kept."""
    from demi.calibration.gate.baseline import read_baseline

    return dict(read_baseline(args.baseline).models) if args.write_baseline and args.baseline.exists() else {}


def _limit(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of zero or more")
    return value


# --- what is written ------------------------------------------------------------------------------------------------


def _write_reports(outcomes: list[Outcome], args: argparse.Namespace, console: Console) -> None:
    from demi.calibration.gate.reports.junit import junit
    from demi.calibration.gate.reports.markdown import markdown

    if args.junit:
        write_whole(args.junit, junit(outcomes))
    if args.markdown:
        write_whole(args.markdown, markdown(outcomes))
    if summary := os.environ.get(SUMMARY):
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(markdown(outcomes) + "\n")
        except OSError as error:
            console.warn(f"cannot write the job's summary: {error.strerror or error} ({SUMMARY}={summary})")


def _write_baseline(
    outcomes: list[Outcome],
    known: Mapping[str, Entry],
    tolerances: Mapping[str, float | str],
    args: argparse.Namespace,
    console: Console,
) -> None:
    from demi.calibration.gate.baseline import require_unique_names, write_baseline
    from demi.calibration.gate.check import Check
    from demi.calibration.gate.measure import figure

    checks = [each for each in outcomes if isinstance(each, Check) and each]
    if len(checks) < len(outcomes):
        console.note(f"{args.baseline}: not written, because not every bundle passed")
        return
    require_unique_names([check.name for check in checks])
    known_measures = {measure.name for check in checks for measure in check.measures}
    if unknown := [name for name in tolerances if name not in known_measures]:
        raise InputError(f"unknown measure `{unknown[0]}`", hint=f"use one of {', '.join(sorted(known_measures))}")
    entries = {check.name: check.baseline_entry(tolerances, known.get(check.name)) for check in checks}
    write_baseline(args.baseline, {**known, **entries})
    for name, entry in entries.items():
        for measure in entry.measures:
            console.note(
                f"{args.baseline}: {name}: {measure.label} {figure(measure.value)}, may worsen by {figure(measure.allowed)}"
            )


# --- what is shown --------------------------------------------------------------------------------------------------


def _show(outcomes: list[Outcome], args: argparse.Namespace, console: Console) -> None:
    from demi.calibration.gate.check import UncheckedBundle
    from demi.calibration.gate.reports.json_report import check_to_json

    if args.json:
        console.json([check_to_json(each) for each in outcomes])
    for outcome in outcomes:
        if isinstance(outcome, UncheckedBundle):
            console.error(outcome.error)
            continue
        if not args.json:
            print_check(outcome, console)
        for result in outcome.gate_results:
            for line in result.errors:
                console.note(f"{result.gate}: {outcome.name} v{outcome.version}: {line}")
            for line in result.warnings:
                console.warn(f"{outcome.name} v{outcome.version}: {line}")
