"""Why a step was skipped: it is run again with the same random numbers, and watched.

Nothing is recorded in steps that go well, so that looking for a cause costs nothing until there is one. The first value
that is not finite, in the order of execution, names the module and the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from demi.training.rng import RandomState
from demi.training.state import Buffers, TrainState
from demi.training.task import Batch, tensors_of

WEIGHTS, BATCH, FORWARD, LOSS = "weights", "batch", "forward", "loss"
SCALE, BACKWARD, REDUCE, OTHER_RANK, UNKNOWN = "scale search", "backward", "all-reduce", "another rank", "unknown"

ADVICE = {
    WEIGHTS: "the weights were not finite before the step: go back to an earlier checkpoint (--resume takes the last)",
    BATCH: "the data holds NaN or infinity: clean it, or leave such batches out",
    FORWARD: "an activation left the range of the half type: keep this module in FP32, normalize before it, or use bf16",
    LOSS: "the loss itself is not finite: compute it in FP32, and look for log(0) and division by 0",
    SCALE: "normal: the loss scale was too high and has been lowered",
    BACKWARD: "a gradient leaves the half type's range even without a loss scale: keep this module in FP32, or use bf16",
    REDUCE: "the sum over ranks overflowed: average in FP32 (reduce_dtype=float32), or lower the gradients",
    OTHER_RANK: "another rank skipped: its log has the cause",
    UNKNOWN: "running the step again did not show it: something in it is not deterministic",
}
"""What each cause means and what to do about it."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Why a step was skipped."""

    cause: str
    module: str = ""
    """The module in which the first value that is not finite arose; empty where it was none."""
    tensor: str = ""
    """Which of its tensors, or which weight, or which part of the batch."""
    largest: float | None = None
    """The largest finite magnitude that went in, where that says how far over the range it was."""

    @property
    def is_benign(self) -> bool:
        """Whether this is the loss scaler's normal work."""
        return self.cause == SCALE

    def __str__(self) -> str:
        place = f" in `{self.module}`" if self.module else ""
        which = f" ({self.tensor})" if self.tensor else ""
        size = f", from values up to {self.largest:.4g}" if self.largest is not None else ""
        return f"{self.cause}{place}{which}{size}: {ADVICE[self.cause]}"


def find_cause(state: TrainState, batches: Sequence[Batch], before: RandomState, buffers: Buffers) -> Skip:
    """Return why the step on these batches was skipped. The model is left as it is; gradients are lost.

    `before` is the random state that the step began with, and `buffers` what BatchNorm and its like had then.
    """
    if (name := _first_bad(state.model.named_parameters())) is not None:
        return Skip(WEIGHTS, tensor=name)
    if (name := _first_bad(pair for batch in batches for pair in tensors_of(batch))) is not None:
        return Skip(BATCH, tensor=name)
    model = getattr(state.model, "module", state.model)  # without DDP around it: what one rank does, others need not
    try:
        found = _replay(state, model, batches, before, buffers, state.scale)
        if found is not None and found.cause == BACKWARD and state.scale > 1:
            again = _replay(state, model, batches, before, buffers, 1.0)
            return again if again is not None else Skip(SCALE, found.module, found.tensor)
        if found is not None:
            return found
    finally:
        buffers.restore()
        state.optimizer.zero_grad(set_to_none=True)
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        return Skip(REDUCE)
    return Skip(UNKNOWN)


def _first_bad(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity."""
    for name, tensor in named:
        if _is_bad(tensor):
            return name
    return None


def _is_bad(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor.detach()).all())


def _largest(tensors: Iterable[Tensor]) -> float | None:
    """Return the largest magnitude of some tensors, where all of it is finite."""
    found = [float(t.detach().abs().max()) for t in tensors if t.is_floating_point() and t.numel()]
    return max(found) if found and all(map(math.isfinite, found)) else None


def _replay(
    state: TrainState, model: nn.Module, batches: Sequence[Batch], before: RandomState, buffers: Buffers, scale: float
) -> Skip | None:
    """Run the step once more at a loss scale, and return the first value that is not finite; None for none."""
    _rewind(state, before, buffers)
    for index, batch in enumerate(batches):
        with _Watch(model) as watch:
            with state.precision.autocast(state.device):
                loss = state.task.loss(model, batch)
            if _is_bad(loss):
                usual = _usual(state, model, batches[: index + 1], before, buffers)
                unusual = [skip for skip in watch.forward if (skip.module, skip.tensor) not in usual]
                return unusual[0] if unusual else Skip(LOSS, tensor=f"{float(loss.detach())}")
            (loss.float() / len(batches) * scale).backward()  # type: ignore[no-untyped-call]
            if watch.backward is not None:
                return watch.backward
    bad = _first_bad((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    return Skip(BACKWARD, bad.rpartition(".")[0], f"gradient of {bad}") if bad is not None else None


def _rewind(state: TrainState, before: RandomState, buffers: Buffers) -> None:
    before.restore()
    buffers.restore()
    state.optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _usual(
    state: TrainState, model: nn.Module, batches: Sequence[Batch], before: RandomState, buffers: Buffers
) -> set[tuple[str, str]]:
    """Return the places that hold infinities without autocast as well: attention masks and the like.

    With a finite loss all of them are harmless; else those that hold minus infinity alone, as masks do.
    """
    _rewind(state, before, buffers)
    places: set[tuple[str, str]] = set()
    for batch in batches:
        with _Watch(model) as watch:
            is_bad = _is_bad(state.task.loss(model, batch))
            places |= watch.masks if is_bad else {(skip.module, skip.tensor) for skip in watch.forward}
    return places


class _Watch:
    """Hooks on every module that note values that are not finite, forward and backward, in the order of execution.

    A child's hook runs before its parent's, so that the innermost module comes first. What arises between two children is
    found at the input of the second one, and is the parent's.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self.forward: list[Skip] = []
        self.masks: set[tuple[str, str]] = set()
        """Places of `forward` that hold no NaN and nothing infinite but minus infinity."""
        self.backward: Skip | None = None

    def __enter__(self) -> _Watch:
        for name, module in self._model.named_modules():
            parent = name.rpartition(".")[0] if name else ""
            self._handles.append(module.register_forward_pre_hook(self._before(name, parent), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after(name), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, name: str, parent: str) -> Callable[..., None]:
        def look(_: nn.Module, args: Any, kwargs: Any) -> None:
            for where, tensor in tensors_of([*args, kwargs], "input") if name else ():
                if _is_bad(tensor):
                    self._note(Skip(FORWARD, parent or "the model", f"before `{name}`, {where}"), tensor)

        return look

    def _after(self, name: str) -> Callable[..., None]:
        def look(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            for where, tensor in tensors_of(output, "output"):
                if _is_bad(tensor):
                    largest = _largest(value for _, value in tensors_of([*args, kwargs]))
                    self._note(Skip(FORWARD, name or "the model", where, largest), tensor)
                elif tensor.requires_grad:
                    tensor.register_hook(self._gradient(name, where))  # type: ignore[no-untyped-call]

        return look

    def _note(self, skip: Skip, tensor: Tensor) -> None:
        self.forward.append(skip)
        if not bool((torch.isnan(tensor) | torch.isposinf(tensor)).any()):
            self.masks.add((skip.module, skip.tensor))

    def _gradient(self, name: str, where: str) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            if self.backward is None and _is_bad(gradient):
                self.backward = Skip(BACKWARD, name or "the model", f"gradient of its {where}")

        return look
