"""Real batches for `demi export`: drawn from all that a run has seen, those with the widest ranges first.

A task's batches follow from their numbers, so that a reservoir needs no memory while training: numbers are drawn, those
that made the largest outputs in training (`running_ranges.py`) are added, and the batches are read again. The trained model runs on each of them; where a module's output is largest over all of them,
that batch becomes a sample. Ranges on the few samples are then those of all batches that were looked at.

runs/digits/ranges.json    the largest magnitude of every module's output, and the number of its batch; and the largest
                           one in training, with its step
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from demi.training.batches import Batches
from demi.training.request import TrainRequest
from demi.training.running_ranges import Top
from demi.training.state import TrainState
from demi.training.task import Batch, call_loss, tensors_of

FILE = "ranges.json"
LOOKED_AT = 64
"""Batches whose ranges are measured."""
WIDEST = 16
"""Steps whose batches are added because modules were widest there in training."""
KEPT = 8
"""Batches that become samples: enough for ranges, and few to search a plan with."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch that a run has trained on, and the largest finite magnitude of each module's output on it."""

    number: int
    batch: Batch
    largest: Mapping[str, float]


def look_at_batches(
    request: TrainRequest, state: TrainState, model: nn.Module, tops: Mapping[str, Top] | None = None
) -> list[Seen]:
    """Return batches drawn from all that the run has taken, with the ranges of a trained model on each.

    Those of `tops`, which were widest in training, come first.

    `model` is in FP32 and in evaluation mode. Batches with NaN or infinities, which training has skipped, are left out.
    """
    found = []
    drawn = _draw(request.seed, state.counters.batches)
    for number in dict.fromkeys([*_widest(tops or {}, request.accumulate), *drawn]):
        for batch in Batches(request, state, number).take(1):
            if all(bool(torch.isfinite(t).all()) for _, t in tensors_of(batch) if t.is_floating_point()):
                found.append(Seen(number, batch, largest_outputs(state, model, batch)))
    return found


def choose(seen: Sequence[Seen], count: int = KEPT) -> list[Seen]:
    """Return the batches that hold most modules' largest outputs, then others in the order they were drawn in."""
    tops = Counter(top.number for top in _tops(seen).values())
    return sorted(seen, key=lambda each: -tops[each.number])[:count]


def ranges_of(seen: Sequence[Seen], tops: Mapping[str, Top] | None = None) -> dict[str, dict[str, float]]:
    """Return each module's largest output over all batches, and the number of its batch; and that in training."""
    found: dict[str, dict[str, float]] = {}
    for name, top in _tops(seen).items():
        found[name] = {"largest": top.largest[name], "batch": top.number}
        if tops is not None and name in tops:
            found[name] |= {"in_training": tops[name].largest, "at_step": tops[name].step}
    return found


def _widest(tops: Mapping[str, Top], accumulate: int) -> list[int]:
    """Return the numbers of the batches on which most modules were widest in training, with those of the same steps."""
    counts = Counter(top.batch for top in tops.values())
    first = [number for number, _ in counts.most_common(WIDEST)]
    return [number + more for number in first for more in range(accumulate)]


def _draw(seed: int, batches: int) -> list[int]:
    """Return numbers of batches, each as likely as any other; all of them in a short run."""
    order = np.random.default_rng((seed, batches)).permutation(batches)
    return [int(number) for number in order[:LOOKED_AT]]


def _tops(seen: Sequence[Seen]) -> dict[str, Seen]:
    """Return the batch with the largest output of each module."""
    names = dict.fromkeys(name for each in seen for name in each.largest)
    return {name: max(seen, key=lambda each: each.largest.get(name, -math.inf)) for name in names}


@torch.no_grad()
def largest_outputs(state: TrainState, model: nn.Module, batch: Batch) -> dict[str, float]:
    """Return the largest finite magnitude of the output of each module that the task's loss calls."""
    found: dict[str, float] = {}

    def note(name: str, output: object) -> None:
        for _, tensor in tensors_of(output):
            if tensor.is_floating_point() and tensor.numel():
                size = float(torch.nan_to_num(tensor.detach().abs(), 0.0, 0.0, 0.0).max())
                found[name] = max(found.get(name, 0.0), size)

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        call_loss(state.task, model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
