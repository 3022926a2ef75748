"""`demi train`: train a task in half precision, with a reason for every step that is skipped."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console, significant
from demi.cli.options import add_json, not_negative, positive
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
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Train, and print what came out."""
    from demi.training.loop import train

    request = _request(args)
    first = os.environ.get("RANK", "0") == "0"
    done = train(request, console.step if first else silent, console.note)
    if not first:
        return INTERRUPTED if done.interrupted else 0
    if args.json:
        console.json(asdict(done) | {"folder": str(done.folder)})
    else:
        _print(done, console)
    if done.interrupted:
        console.note(f"stopped after step {done.steps} of {request.steps}; go on with the same command and --resume")
        return INTERRUPTED
    return 0


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
        save_every=args.save_every,
        evaluate_every=args.evaluate_every,
        keep=args.keep,
        logs=tuple(name.strip() for name in args.log.split(",") if name.strip()),
        max_skips=args.max_skips,
        init_scale=args.loss_scale,
    )


def _print(done: Trained, console: Console) -> None:
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
