"""Cost of training with Demi: its loop beside a bare one, in every precision, with and without instruments.

    python -m bench.training --rounds 7 --steps 6

Every variant trains the same encoder, and the variants take turns, so that a noisy machine disturbs them alike. Prints a
Markdown table of ratios: the median over rounds of a variant's CPU time by that of the bare FP32 loop of its round; one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from demi.training.loop import prepare
from demi.training.request import TrainRequest
from demi.training.step import take_step
from demi.training.task import Position
from demi.training.watch import watch

Pair = tuple[Tensor, Tensor]
WIDTH, TOKENS, ROWS = 256, 64, 4


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


def bare(dtype: torch.dtype | None, *, watched: bool = False) -> Callable[[], None]:
    """Return one step of a plain PyTorch loop, with clipping as Demi's has it."""
    torch.manual_seed(0)
    task = Task()
    model = task.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = task.batches(Position(0, 0))
    if watched:
        watch(model, optimizer)

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
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6, help="steps of a variant in a round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variants = {
            "bare fp32": bare(None),
            "demi fp32": ours(folder, "fp32"),
            "bare fp32, demi.watch": bare(None, watched=True),
            "bare bf16": bare(torch.bfloat16),
            "demi bf16": ours(folder, "bf16"),
            "demi bf16, every step inspected": ours(folder, "bf16", inspect=True),
            "demi fp16": ours(folder, "fp16"),
            "demi bf16-pure": ours(folder, "bf16-pure"),
            "demi fp16, rehearsed": ours(folder, "fp16", rehearse=True),
            "demi bf16, rehearsed": ours(folder, "bf16", rehearse=True),
        }
        ratios: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(args.rounds + 1):  # the first round warms up
            times = {variant: _best(step, args.steps) for variant, step in variants.items()}
            for variant, seconds in times.items():
                ratios[variant].append(seconds / times["bare fp32"])
    print("| variant | CPU time of a step / bare fp32 | lowest to highest of the rounds |\n| --- | --- | --- |")
    for variant, found in ratios.items():
        print(f"| {variant} | {median(found[1:]):.3f} | {min(found[1:]):.3f} to {max(found[1:]):.3f} |")


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
