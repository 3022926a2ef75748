"""Training runs with a planted answer: faults whose cause must be named, and pairs of runs whose verdict is known."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demi.errors import DivergedError
from demi.training.logs import read_log
from demi.training.loop import train
from demi.training.optimizer import OptimizerSettings
from demi.training.request import TrainRequest
from demi.training.task import Task as AnyTask
from demi.training.verdict import AS_GOOD, WORSE, judge
from tests.paths import ROOT
from tests.training.tasks import BackwardOverflow, BadLoss, BadWeight, BatchWithNan, ForwardOverflow, Masked, Task
from tests.training.test_verdict import planted

NONE = "none"
"""The cause where no step may be skipped."""
SEEDS = 10
"""Planted pairs of either kind."""


@dataclass(frozen=True)
class Fault:
    """A task with a fault, and the cause that each skipped step must be given."""

    name: str
    task: AnyTask
    precision: str
    cause: str
    """The beginning of the line about the skip, with module and tensor."""
    init_scale: float = 1.0
    max_skips: int = 3
    """Skips in a row that end the run: each lowers the loss scale, and a low one lets a planted gradient pass."""


FAULTS = (
    Fault("an activation beyond 65,504", ForwardOverflow(), "fp16", "forward in `1` (output)"),
    Fault("a gradient beyond 65,504", BackwardOverflow(), "fp16", "backward in `4` (gradient of its output)"),
    *(Fault("NaN in a batch", BatchWithNan(), kind, "batch (batch[0])") for kind in ("fp16", "bf16", "fp32")),
    *(Fault("an infinite weight", BadWeight(), kind, "weights (4.weight)") for kind in ("fp16", "bf16", "fp32")),
    *(Fault("the logarithm of zero", BadLoss(), kind, "loss (") for kind in ("fp16", "bf16", "fp32")),
    Fault("none, and a loss scale that is too high", Task(), "fp16", "scale search", init_scale=2.0**40, max_skips=40),
    Fault("none, and a mask of minus infinity", Masked(), "fp16", NONE),
    Fault("none", Task(), "bf16", NONE),
)


def print_faults() -> None:
    """Print each planted fault with the cause that was named."""
    print("| planted | precision | skips | cause named | |\n| --- | --- | --- | --- | --- |")
    for fault in FAULTS:
        causes = causes_of(fault)
        named = ", ".join(dict.fromkeys(re.split(r", from |:", cause)[0] for cause in causes)) or NONE
        print(
            f"| {fault.name} | {fault.precision} | {len(causes)} | {named} | {_right(is_named(fault, causes))} |",
            flush=True,
        )
    first, second = all_reduce_causes()
    right = (first, second) == (NONE, "all-reduce")
    print(f"| a sum over two ranks beyond 65,504, all terms finite | fp16 | 1 | {second} | {_right(right)} |\n")


def causes_of(fault: Fault, steps: int = 40) -> list[str]:
    """Return the line about each step that was skipped in a short run, whose weights hardly move: a fault stays in its place."""
    with tempfile.TemporaryDirectory() as name:
        still = OptimizerSettings(lr=1e-9)
        request = TrainRequest(
            fault.task,
            steps,
            Path(name),
            fault.precision,
            still,
            max_skips=fault.max_skips,
            init_scale=fault.init_scale,
        )
        with contextlib.suppress(DivergedError):  # as planted
            train(request)
        return [str(line["skip"]) for line in read_log(Path(name)) if "skip" in line]


def is_named(fault: Fault, causes: list[str]) -> bool:
    """Return whether every skip has the planted cause, and no step was skipped without one."""
    if fault.cause == NONE:
        return not causes
    return bool(causes) and all(cause.startswith(fault.cause) for cause in causes)


def all_reduce_causes() -> tuple[str, str]:
    """Return the causes of a good step and of one whose sum over two ranks overflows."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*start, "-m", "tests.training.compressed"]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=True)
    first, second = ended.stdout.split()
    return first, second


def verdicts() -> Iterator[tuple[str, str, str]]:
    """Yield planted pairs with the verdict that is right and the one that was given."""
    for kind, lost, wanted in (("nothing is lost", 0.0, AS_GOOD), ("two SD of the seeds are lost", 0.02, WORSE)):
        for seed in range(SEEDS):
            yield kind, wanted, judge(*planted(seed, lost)).outcome


def print_verdicts() -> None:
    """Print how many of the planted verdicts are right."""
    found = list(verdicts())
    print("| planted: eight pairs of runs | verdict wanted | right |\n| --- | --- | --- |")
    for kind, wanted in dict.fromkeys((kind, wanted) for kind, wanted, _ in found):
        given = [outcome for each, _, outcome in found if each == kind]
        print(f"| {kind} | {wanted} | {given.count(wanted)} of {len(given)} |")
    print()


def _right(is_right: bool) -> str:
    return "right" if is_right else "WRONG"


if __name__ == "__main__":
    print_faults()
    print_verdicts()
