"""Cost of training with Demi, beside its goals, and planted faults and verdicts.

    python -m bench.training --rounds 7 --steps 6
    python -m bench.training --only faults
    python -m bench.training --only verdicts
    python -m bench.training --only example

`speed` trains the same encoder in every variant, and the variants take turns, so that a noisy machine disturbs them alike.
It prints ratios, the median over rounds of a variant's CPU time by that of the bare FP32 loop of its round with one thread,
and the goals that follow from them. `faults` plants each cause of a skip, `verdicts` twenty pairs of runs whose answer is
known (`bench/planted_runs.py`). `example` takes the time of `examples.bert` on a machine that does nothing else. Without
`--only` all but the example are printed. All tables are Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from bench.planted_runs import print_faults, print_verdicts
from demi.training.loop import prepare
from demi.training.request import TrainRequest
from demi.training.step import take_step
from demi.training.task import Position
from demi.training.watch import watch

Pair = tuple[Tensor, Tensor]
WIDTH, TOKENS, ROWS = 512, 128, 4
INSPECT_EVERY = 100
"""Steps between inspections, as `demi train` has it by default."""
LIMIT_S = 120.0
"""Seconds that the example may take on two idle cores."""


class Encoder(nn.Module):
    """Two transformer layers and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classes of sequences of vectors."""
        found: Tensor = self.last(self.layers(x).mean(1))
        return found


class Task:
    """Classify random sequences: only time is measured."""

    def model(self) -> nn.Module:
        """The encoder."""
        return Encoder()

    def batches(self, position: Position) -> Iterator[Pair]:
        """The same batch again and again."""
        generator = torch.Generator().manual_seed(position.seed)
        batch = torch.randn(ROWS, TOKENS, WIDTH, generator=generator), torch.arange(ROWS) % 10
        while True:
            yield batch

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """Cross-entropy in FP32."""
        x, y = batch
        return nn.functional.cross_entropy(model(x).float(), y)


def bare(dtype: torch.dtype | None, *, watched: bool = False, closed: bool = False) -> Callable[[], None]:
    """Return one step of a plain PyTorch loop, with clipping as Demi's has it; `closed` ends the watch again."""
    torch.manual_seed(0)
    task = Task()
    model = task.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = task.batches(Position(0, 0))
    if watched or closed:
        watching = watch(model, optimizer)
        if closed:
            watching.close()

    def step() -> None:
        with torch.autocast("cpu", dtype) if dtype is not None else contextlib.nullcontext():
            loss = task.loss(model, next(batches))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def ours(folder: Path, precision: str, *, inspect: bool = False, rehearse: bool = False) -> Callable[[], None]:
    """Return one step of Demi's loop."""
    request = TrainRequest(Task(), 10**6, folder / f"{precision}-{inspect}-{rehearse}", precision, rehearse=rehearse)
    state = prepare(request)
    batches = iter(state.task.batches(Position(0, 0)))

    def step() -> None:
        with state.arithmetic():
            take_step(state, [next(batches)], 1.0, inspect=inspect)

    return step


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6, help="steps of a variant in a round")
    parser.add_argument(
        "--only", choices=("speed", "faults", "verdicts", "example"), help="print one of the tables alone"
    )
    args = parser.parse_args()
    if args.only in (None, "speed"):
        _print_speed(args.rounds, args.steps)
    if args.only in (None, "faults"):
        print_faults()
    if args.only in (None, "verdicts"):
        print_verdicts()
    if args.only == "example":
        _print_example()


def _print_speed(rounds: int, steps: int) -> None:
    """Print the ratio of every variant, and the goals."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        ratios = _ratios(_variants(Path(name)), rounds, steps)
    print("| variant | CPU time of a step / bare fp32 | lowest to highest of the rounds |\n| --- | --- | --- |")
    for variant, found in ratios.items():
        print(f"| {variant} | {median(found):.3f} | {min(found):.3f} to {max(found):.3f} |")
    print("\n| goal | wanted | measured | |\n| --- | --- | --- | --- |")
    for goal, wanted, measured, met in goals(ratios):
        print(f"| {goal} | {wanted} | {measured} | {'met' if met else 'missed'} |")
    print()


def _variants(folder: Path) -> Mapping[str, Callable[[], None]]:
    return {
        "bare fp32": bare(None),
        "demi fp32": ours(folder, "fp32"),
        "bare fp32, demi.watch": bare(None, watched=True),
        "bare fp32, demi.watch closed": bare(None, closed=True),
        "bare bf16": bare(torch.bfloat16),
        "demi bf16": ours(folder, "bf16"),
        "demi bf16, every step inspected": ours(folder, "bf16", inspect=True),
        "demi fp16": ours(folder, "fp16"),
        "demi bf16-pure": ours(folder, "bf16-pure"),
        "demi fp16, rehearsed": ours(folder, "fp16", rehearse=True),
        "demi bf16, rehearsed": ours(folder, "bf16", rehearse=True),
    }


def _ratios(variants: Mapping[str, Callable[[], None]], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return each variant's CPU time by that of the bare FP32 loop, round by round; the first round warms up."""
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(rounds + 1):
        times = {variant: _best(step, steps) for variant, step in variants.items()}
        for variant, seconds in times.items() if number else ():
            found[variant].append(seconds / times["bare fp32"])
    return found


def goals(ratios: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str, str, bool]]:
    """Yield each goal with its limit, the median of its rounds, and whether that is met.

    The cost of inspections is that of one, spread over the steps between two of them.
    """

    def between(one: str, other: str) -> float:
        return median(a / b for a, b in zip(ratios[one], ratios[other], strict=True))

    gain = 1 / between("demi bf16", "bare fp32")
    yield "bf16 autocast, speed beside fp32", "at least 1.7x", f"{gain:.2f}x", gain >= 1.7
    for precision in ("fp32", "bf16"):
        more = between(f"demi {precision}", f"bare {precision}") - 1
        yield f"the loop in {precision}, beside a bare one", "at most 3% more", f"{more:+.1%}", more <= 0.03
    inspected = (between("demi bf16, every step inspected", "demi bf16") - 1) / INSPECT_EVERY
    yield "default instruments of the loop in bf16", "at most 5% more", f"{inspected:+.1%}", inspected <= 0.05
    watched = between("bare fp32, demi.watch", "bare fp32") - 1
    yield "`demi.watch` around a bare loop", "at most 5% more", f"{watched:+.1%}", watched <= 0.05
    closed = between("bare fp32, demi.watch closed", "bare fp32") - 1
    yield "instruments switched off", "none (1% of noise)", f"{closed:+.1%}", closed <= 0.01


def _print_example() -> None:
    """Print the wall-clock time of the example with BERT, which has to pass."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "examples.bert", "--work", f"{name}/bert"]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
    print("| example | wanted | wall-clock time | |\n| --- | --- | --- | --- |")
    print(
        f"| `examples.bert` | at most {LIMIT_S:g} s | {seconds:.0f} s | {'met' if seconds <= LIMIT_S else 'missed'} |"
    )


def _best(step: Callable[[], None], count: int) -> float:
    """Return the CPU seconds of the fastest of some steps: what other processes take is in the others."""
    seconds = []
    for _ in range(count):
        began = time.process_time()
        step()
        seconds.append(time.process_time() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
