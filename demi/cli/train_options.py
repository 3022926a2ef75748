"""The options of `demi train`, and the request that they make."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.options import add_json, not_negative, positive

if TYPE_CHECKING:
    from demi.training.request import TrainRequest


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add the task, a positional argument."""
    parser.add_argument(
        "task",
        metavar="PKG.MOD:TASK",
        help="an object with model(), batches(position) and loss(model, batch), or a function that returns one",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options, group by group."""
    add_task(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="the run's folder (default: runs/TASK)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, bit for bit")
    _add_precision(parser.add_argument_group("precision"))
    _add_optimization(parser.add_argument_group("optimization"))
    _add_devices(parser.add_argument_group("devices"))
    _add_checkpoints(parser.add_argument_group("log and checkpoints"))
    _add_comparison(parser.add_argument_group("comparison with FP32"))
    add_json(parser)


def _add_precision(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--precision",
        default="auto",
        metavar="P",
        help="fp16 and bf16 compute in half with FP32 weights; bf16-pure stores weights in BF16 with Kahan summation; "
        "fp32; auto (default) is bf16 where the device has it, else fp32",
    )
    group.add_argument("--loss-scale", type=above_zero, default=65536.0, metavar="S", help="first loss scale of fp16")
    group.add_argument(
        "--max-skips", type=positive, default=25, metavar="N", help="give up after N skipped steps in a row"
    )
    group.add_argument(
        "--rehearse",
        action="store_true",
        help="compute a GPU's numbers on this CPU: products in FP32, every half tensor rounded, infinities included",
    )
    group.add_argument(
        "--keep-fp32",
        action="append",
        default=[],
        metavar="MODULE",
        help="path, glob or class name of a module to keep in FP32; repeatable",
    )
    group.add_argument(
        "--find-plan",
        action="store_true",
        help="measure each module's error in half first, keep in FP32 what is beyond --plan-budget, and write plan.json",
    )
    group.add_argument(
        "--plan-budget",
        type=above_zero,
        default=0.02,
        metavar="X",
        help="relative L2 error of the gradients that a measured plan may have (default: 0.02)",
    )
    group.add_argument("--plan", type=Path, metavar="JSON", help="keep in FP32 what this plan.json keeps there")


def _add_optimization(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--steps", type=positive, required=True, metavar="N", help="steps in all")
    group.add_argument("--lr", type=above_zero, default=1e-3, metavar="X", help="learning rate (default: 1e-3)")
    group.add_argument(
        "--weight-decay", type=zero_or_more, default=0.01, metavar="X", help="of matrices (default: 0.01)"
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
        "--clip", type=zero_or_more, default=1.0, metavar="X", help="largest gradient norm; 0 for none (default: 1)"
    )
    group.add_argument("--accumulate", type=positive, default=1, metavar="N", help="batches a step")
    group.add_argument("--seed", type=not_negative, default=0, metavar="N", help="seed of weights, data and dropout")


def _add_devices(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda or cuda:N")
    group.add_argument(
        "--shard",
        choices=["ddp", "fsdp"],
        default="",
        help="share the work among the ranks that torchrun started: a copy of the model on each, or a share of it",
    )


def _add_checkpoints(group: argparse._ArgumentGroup) -> None:
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


def _add_comparison(group: argparse._ArgumentGroup) -> None:
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
        type=above_zero,
        metavar="X",
        help="loss of the metric that does not matter (default: half of the FP32 seeds' standard deviation)",
    )
    group.add_argument("--better", choices=["higher", "lower"], help="which metric is better (default: from its name)")


def train_request(args: argparse.Namespace) -> TrainRequest:
    """Return the request that the options make. Raises InputError for a task or a plan that cannot be read."""
    from demi.plan import read_plan
    from demi.training.optimizer import OptimizerSettings
    from demi.training.request import TrainRequest
    from demi.training.task import load_task

    settings = OptimizerSettings(lr=args.lr, weight_decay=args.weight_decay, schedule=args.schedule, warmup=args.warmup)
    return TrainRequest(
        task=load_task(args.task),
        steps=args.steps,
        folder=args.output or default_folder(args.task),
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
        rehearse=args.rehearse,
        plan=read_plan(args.plan) if args.plan else None,
        find_plan=args.find_plan,
        plan_budget=args.plan_budget,
        keep_fp32=tuple(args.keep_fp32),
        save_model=args.save_model,
        save_every=args.save_every,
        evaluate_every=args.evaluate_every,
        keep=args.keep,
        logs=tuple(name.strip() for name in args.log.split(",") if name.strip()),
        max_skips=args.max_skips,
        init_scale=args.loss_scale,
    )


def default_folder(task: str) -> Path:
    """Return the folder of a task's run: `runs/digits` for `tasks:digits`."""
    return Path("runs") / task.rpartition(":")[2].rpartition(".")[2]


def above_zero(text: str) -> float:
    """Parse a number above 0, for argparse."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        if value := zero_or_more(text):
            return value
    raise argparse.ArgumentTypeError(f"`{text}` is not a number above 0")


def zero_or_more(text: str) -> float:
    """Parse a number of 0 or more, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of zero or more")
    return value
