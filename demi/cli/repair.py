"""`demi repair`: a trained model whose ranges leave FP16, fine-tuned until they fit."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console, significant
from demi.cli.options import add_json, not_negative, positive
from demi.cli.train_options import above_zero, add_task, zero_or_more

if TYPE_CHECKING:
    from demi.training.repair import Repaired


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi repair`."""
    add_task(parser)
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        metavar="RUN",
        help="a run of demi train with the weights (default: those that the task's model() returns)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder, which demi export takes"
    )
    parser.add_argument("--steps", type=positive, default=2000, metavar="N", help="most steps (default: 2000)")
    parser.add_argument(
        "--budget",
        type=above_zero,
        default=1e-2,
        metavar="X",
        help="relative L2 that the half model's answers may be from those in FP32 (default: 0.01)",
    )
    parser.add_argument(
        "--margin",
        type=zero_or_more,
        default=1.0,
        metavar="BITS",
        help="bits below 2^15 that every tensor must stay (default: 1)",
    )
    parser.add_argument(
        "--lr",
        type=above_zero,
        default=0.1,
        metavar="X",
        help="bits that a tensor's scale moves in a step (default: 0.1)",
    )
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="seed of the model and the data")
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Repair, and print ranges and distance before and after."""
    from demi.training.repair import RepairRequest, repair
    from demi.training.task import load_task

    request = RepairRequest(
        task=load_task(args.task),
        folder=args.output,
        run=args.run,
        steps=args.steps,
        budget=args.budget,
        margin=args.margin,
        lr=args.lr,
        seed=args.seed,
    )
    done = repair(request, console.step)
    if args.json:
        console.json(asdict(done) | {"folder": str(done.folder)})
    else:
        _print(done, console)
    return 0


def _print(done: Repaired, console: Console) -> None:
    rows = [
        [
            "largest tensor",
            significant(done.before.largest),
            significant(done.after.largest),
            f"{done.before.place}; {significant(done.after.limit)} fits",
        ],
        [
            "distance in half",
            significant(done.before.distance),
            significant(done.after.distance),
            "relative L2 from FP32",
        ],
        ["steps", "", f"{done.steps:,}", f"demi export {done.folder} takes the result"],
    ]
    console.table(f"{done.folder.name}: repaired for FP16", ["", "before", "after", "details "], rows)
