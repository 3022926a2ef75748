"""`demi train`: train a task in half precision, with a reason for every step that is skipped."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from demi.cli.console import Console, significant
from demi.cli.train_options import add_options, train_request
from demi.errors import InputError, PackageError
from demi.progress import silent

if TYPE_CHECKING:
    from demi.training.request import Trained, TrainRequest

INTERRUPTED = 130
"""The exit code of a run that was stopped, as shells report SIGINT."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi train`."""
    add_options(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Train, and print what came out."""
    from demi.training.loop import train

    _check_verify(args)
    request = train_request(args)
    _note_slow(request, console)
    if args.compare is not None:
        return _compare(request, args, console)
    first = os.environ.get("RANK", "0") == "0"
    done = train(request, console.step if first else silent, console.note)
    if not first:
        return INTERRUPTED if done.interrupted else 0
    _write_report(done, console)
    if args.json:
        console.json(asdict(done) | {"folder": str(done.folder)})
    else:
        _print(done, args, console)
    if args.verify_resume and not done.interrupted:
        from demi.cli.verify_resume import verify_resume

        with console.step("resuming in a fresh process"):
            step = verify_resume(args, done.folder, done.precision, done.digest)
        console.note(f"resumed after step {step}: the weights are the same, bit for bit")
    if done.interrupted:
        console.note(f"stopped after step {done.steps} of {request.steps}; go on with the same command and --resume")
        return INTERRUPTED
    return 0


def _check_verify(args: argparse.Namespace) -> None:
    """Raise InputError before a run that could not be verified after it."""
    if args.verify_resume and not args.resume and args.steps <= args.save_every:
        raise InputError(
            f"a run of {args.steps} steps with a checkpoint every {args.save_every} has none to resume from",
            where="--verify-resume",
            hint=f"give a --save-every below {args.steps}",
        )


def _note_slow(request: TrainRequest, console: Console) -> None:
    """Note where half is far slower than FP32, and what helps."""
    from demi.training.precision import why_slow

    slow = why_slow(request.precision, request.device)
    if slow and not request.rehearse:
        console.note(slow)


def _write_report(done: Trained, console: Console) -> None:
    """Write the page about the run; without the packages that draw it, say which."""
    from demi.training.report import FILE, write_report

    try:
        write_report(done)
    except PackageError as error:
        console.note(f"no report.html: {error.message}")
    except OSError as error:  # the disk is full, and the run itself is saved
        console.note(f"no report.html: {error.strerror or error}")
        with contextlib.suppress(OSError):
            (done.folder / FILE).unlink(missing_ok=True)


def _compare(request: TrainRequest, args: argparse.Namespace, console: Console) -> int:
    """Train the pairs, and print the verdict; the exit code is that of a gate."""
    from demi.training.compare import InterruptedRunError, compare, verdict_file

    if request.precision in ("fp32", "auto"):
        raise InputError(
            f"--compare with {request.precision}", where="--precision", hint="name the half type: fp16, bf16, bf16-pure"
        )
    if request.find_plan:
        raise InputError(
            "every seed would get a plan of its own",
            where="--find-plan",
            hint="find one first, and give it with --plan",
        )
    if request.shard:
        raise InputError("--compare trains in one process", where="--shard", hint="leave it out")
    better = None if args.better is None else args.better == "higher"
    try:
        done = compare(
            request,
            args.compare,
            args.metric,
            margin=args.margin,
            higher_is_better=better,
            step=console.step,
            note=console.note,
        )
    except InterruptedRunError:
        console.note("stopped; the same command goes on")
        return INTERRUPTED
    verdict = done.verdict
    if args.json:
        console.json(asdict(done))
    else:
        rows = [
            ["lost in half", significant(verdict.mean), f"mean of {verdict.pairs} pairs, in {done.metric}"],
            ["95% bounds", significant(verdict.low), f"to {significant(verdict.high)}, each one-sided"],
            ["margin", significant(verdict.margin), "given" if args.margin else "half of the SD of the FP32 seeds"],
            ["verdict", verdict.outcome, verdict.reason],
        ]
        title = f"{request.folder.name}: {done.precision} beside fp32, {done.metric}"
        console.table(f"{title} ({verdict_file(request)})", ["", "value", "details "], rows)
    return 0 if verdict.passed else 1


def _print(done: Trained, args: argparse.Namespace, console: Console) -> None:
    skipped = done.steps - done.updates
    causes = ", ".join(f"{count} {cause}" for cause, count in done.skipped.items()) or "none"
    rows = [
        ["steps", f"{done.steps:,}", f"{done.updates:,} updates, {skipped:,} skipped"],
        ["skips by cause", f"{skipped:,}", causes],
        *([["loss", significant(done.loss), "of the last update"]] if math.isfinite(done.loss) else []),
        *([name, significant(value), "evaluated in the weights' type"] for name, value in done.metrics.items()),
        ["time", f"{done.seconds:.1f} s", "in steps"],
        ["run", done.precision, str(done.folder)],
    ]
    console.table(f"{done.folder.name}: trained in {done.precision}", ["", "value", "details "], rows)
    if args.memory:
        _print_memory(done, console)


def _print_memory(done: Trained, console: Console) -> None:
    from demi.training.memory import FILE

    if not (done.folder / FILE).is_file():
        console.note("the memory was not counted: no step has updated the weights")
        return
    counted = json.loads((done.folder / FILE).read_text())
    rows = []
    for name in ("weights", "gradients", "optimizer", "activations"):
        own, single = (counted[side][name] for side in ("own", "fp32"))
        types = ", ".join(f"{count:,} {kind}" for kind, count in own.items())
        rows.append([name, f"{sum(own.values()):,}", f"{sum(single.values()):,}", types])
    console.table("memory in bytes, counted", ["", done.precision, "fp32", "by type "], rows)
