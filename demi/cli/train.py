"""`demi train`: train a task in half precision, with a reason for every step that is skipped."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console, significant
from demi.cli.options import add_json, not_negative, positive
from demi.errors import InputError, PackageError
from demi.progress import silent

if TYPE_CHECKING:
    from demi.training.request import Trained, TrainRequest

INTERRUPTED = 130
"""The exit code of a run that was stopped, as shells report SIGINT."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi train`."""
    parser.add_argument(
        "task",
        metavar="PKG.MOD:TASK",
        help="an object with model(), batches(position) and loss(model, batch), or a function that returns one",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="the run's folder (default: runs/TASK)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, bit for bit")
    group = parser.add_argument_group("precision")
    group.add_argument(
        "--precision",
        default="auto",
        metavar="P",
        help="fp16 and bf16 compute in half with FP32 weights; bf16-pure stores weights in BF16 with Kahan summation; "
        "fp32; auto (default) is bf16 where the device has it, else fp32",
    )
    group.add_argument("--loss-scale", type=_above_zero, default=65536.0, metavar="S", help="first loss scale of fp16")
    group.add_argument(
        "--max-skips", type=positive, default=25, metavar="N", help="give up after N skipped steps in a row"
    )
    group = parser.add_argument_group("optimization")
    group.add_argument("--steps", type=positive, required=True, metavar="N", help="steps in all")
    group.add_argument("--lr", type=_above_zero, default=1e-3, metavar="X", help="learning rate (default: 1e-3)")
    group.add_argument(
        "--weight-decay", type=_zero_or_more, default=0.01, metavar="X", help="of matrices (default: 0.01)"
    )
    group.add_argument(
        "--schedule",
        default="constant",
        metavar="S",
        help="constant (default), linear or cosine: the learning rate's end",
    )
    group.add_argument(
        "--warmup", type=not_negative, default=0, metavar="N", help="steps in which the learning rate rises"
    )
    group.add_argument(
        "--clip", type=_zero_or_more, default=1.0, metavar="X", help="largest gradient norm; 0 for none (default: 1)"
    )
    group.add_argument("--accumulate", type=positive, default=1, metavar="N", help="batches a step")
    group.add_argument("--seed", type=not_negative, default=0, metavar="N", help="seed of weights, data and dropout")
    group.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda or cuda:N")
    group.add_argument(
        "--shard",
        choices=["ddp", "fsdp"],
        default="",
        help="share the work among the ranks that torchrun started: a copy of the model on each, or a share of it",
    )
    group = parser.add_argument_group("log and checkpoints")
    group.add_argument(
        "--evaluate-every", type=not_negative, default=0, metavar="N", help="steps between evaluations; 0: at the end"
    )
    group.add_argument(
        "--save-every", type=positive, default=500, metavar="N", help="steps between checkpoints (default: 500)"
    )
    group.add_argument("--keep", type=positive, default=2, metavar="N", help="checkpoints that stay (default: 2)")
    group.add_argument(
        "--log", default="", metavar="A,B", help="tensorboard, wandb, beside log.jsonl, which is always written"
    )
    group.add_argument(
        "--inspect-every",
        type=not_negative,
        default=100,
        metavar="N",
        help="steps between those whose gradients are compared with FP32 (default: 100; 0: none)",
    )
    group.add_argument(
        "--verify-resume",
        action="store_true",
        help="at the end, go on from the checkpoint before in a fresh process, and compare all weights bit for bit",
    )
    group.add_argument(
        "--save-model",
        action="store_true",
        help="write the trained model and samples: demi export takes the run's folder",
    )
    group.add_argument("--memory", action="store_true", help="count the memory of training by type, beside FP32's")
    group = parser.add_argument_group("comparison with FP32")
    group.add_argument(
        "--compare",
        type=positive,
        metavar="N",
        help="train N seeds in FP32 and in the precision, and end with 0 if half is as good, else with 1",
    )
    group.add_argument(
        "--metric", default="loss", metavar="M", help="what is compared: a metric of the task, or loss (default)"
    )
    group.add_argument(
        "--margin",
        type=_above_zero,
        metavar="X",
        help="loss of the metric that does not matter (default: half of the FP32 seeds' standard deviation)",
    )
    group.add_argument("--better", choices=["higher", "lower"], help="which metric is better (default: from its name)")
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Train, and print what came out."""
    from demi.training.loop import train

    request = _request(args)
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


def _write_report(done: Trained, console: Console) -> None:
    """Write the page about the run; without the packages that draw it, say which."""
    from demi.training.report import write_report

    try:
        write_report(done)
    except PackageError as error:
        console.note(f"no report.html: {error.message}")


def _compare(request: TrainRequest, args: argparse.Namespace, console: Console) -> int:
    """Train the pairs, and print the verdict; the exit code is that of a gate."""
    from demi.training.compare import FILE, InterruptedRunError, compare

    if request.precision in ("fp32", "auto"):
        raise InputError(
            f"--compare with {request.precision}", where="--precision", hint="name the half type: fp16, bf16, bf16-pure"
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
        console.table(f"{title} ({request.folder / FILE})", ["", "value", "details "], rows)
    return 0 if verdict.passed else 1


def _request(args: argparse.Namespace) -> TrainRequest:
    from demi.training.optimizer import OptimizerSettings
    from demi.training.request import TrainRequest
    from demi.training.task import load_task

    settings = OptimizerSettings(lr=args.lr, weight_decay=args.weight_decay, schedule=args.schedule, warmup=args.warmup)
    return TrainRequest(
        task=load_task(args.task),
        steps=args.steps,
        folder=args.output or Path("runs") / args.task.rpartition(":")[2].rpartition(".")[2],
        precision=args.precision,
        optimizer=settings,
        accumulate=args.accumulate,
        clip=args.clip or None,
        seed=args.seed,
        device=args.device,
        resume=args.resume,
        shard=args.shard,
        inspect_every=args.inspect_every,
        memory=args.memory,
        save_model=args.save_model,
        save_every=args.save_every,
        evaluate_every=args.evaluate_every,
        keep=args.keep,
        logs=tuple(name.strip() for name in args.log.split(",") if name.strip()),
        max_skips=args.max_skips,
        init_scale=args.loss_scale,
    )


def _print(done: Trained, args: argparse.Namespace, console: Console) -> None:
    skipped = done.steps - done.updates
    causes = ", ".join(f"{count} {cause}" for cause, count in done.skipped.items()) or "none"
    rows = [
        ["steps", f"{done.steps:,}", f"{done.updates:,} updates, {skipped:,} skipped"],
        ["skips by cause", f"{skipped:,}", causes],
        ["loss", significant(done.loss), "of the last update"],
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


def _above_zero(text: str) -> float:
    value = _zero_or_more(text)
    if not value:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number above 0")
    return value


def _zero_or_more(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of zero or more")
    return value
