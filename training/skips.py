"""Cause of a skipped step: it is run again with the same random numbers, and watched.

Nothing is recorded in steps that go well, so that looking for a cause costs nothing until there is one. The first value
that is not finite, in the order of execution, names the module and the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from demi.training import ranks
from demi.training.task import Batch, tensors_of

WEIGHTS, BATCH, FORWARD, LOSS = "weights", "batch", "forward", "loss"
SCALE, BACKWARD, REDUCE, NORM, UNKNOWN = "scale search", "backward", "all-reduce", "gradient norm", "unknown"

ADVICE = {
    WEIGHTS: "the weights were not finite before the step: go back to an earlier checkpoint (--resume takes the last)",
    BATCH: "the data holds NaN or infinity: clean it, or leave such batches out",
    FORWARD: "an activation left the range of the half type: keep this module in FP32, normalize before it, or use bf16",
    LOSS: "the loss itself is not finite: compute it in FP32, and look for log(0) and division by 0",
    SCALE: "normal: the loss scale was too high and has been lowered",
    BACKWARD: "a gradient leaves the half type's range even without a loss scale: keep this module in FP32, or use bf16",
    REDUCE: "every rank's own gradients are finite, and their sum is not: lower the gradients, or average in FP32",
    NORM: "every gradient is finite, and their norm is beyond FP32: the run diverges; lower the learning rate",
    UNKNOWN: "running the step again did not show it: something in it is not deterministic",
}
"""Meaning of each cause, with a remedy."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Cause of a skipped step."""

    cause: str
    module: str = ""
    """The module in which the first value that is not finite arose; empty where it was none."""
    tensor: str = ""
    """The tensor of the module, the weight, or the part of the batch."""
    largest: float | None = None
    """The largest finite magnitude that went in, where that says how far over the range it was."""
    rank: int | None = None
    """The rank that found it, if there are several."""

    @property
    def is_benign(self) -> bool:
        """Return whether this is the loss scaler's normal work."""
        return self.cause == SCALE

    def __str__(self) -> str:
        place = f" in `{self.module}`" if self.module else ""
        which = f" ({self.tensor})" if self.tensor else ""
        size = f", from values up to {self.largest:.4g}" if self.largest is not None else ""
        who = f" on rank {self.rank}" if self.rank is not None else ""
        return f"{self.cause}{place}{which}{size}{who}: {ADVICE[self.cause]}"


@dataclass(frozen=True, slots=True)
class Root:
    """Start of a backward pass: a loss, or the outputs of a model with the gradients that came back to them."""

    values: Sequence[Tensor]
    gradients: Sequence[Tensor] | None = None
    """One for each value; None for a loss. Not finite where the loss was not, or where its scale was too high."""
    loss_is_finite: bool = False
    """True if that is known, beside `gradients`."""


class Rerun(Protocol):
    """A step that can be run again."""

    @property
    def model(self) -> nn.Module:
        """The model without DDP around it: what one rank runs again, others need not."""
        ...

    @property
    def together(self) -> bool:
        """Return whether a pass talks to other ranks (FSDP), so that all of them must make the same ones to their end."""
        ...

    @property
    def chained(self) -> bool:
        """Return whether a later pass may use the outputs of an earlier one, so that gradients come back to the last one first."""
        ...

    @property
    def scale(self) -> float:
        """The loss scale that the step ran with."""
        ...

    @property
    def inputs(self) -> Sequence[Batch]:
        """Return the inputs, a batch for each pass."""
        ...

    def rewind(self) -> None:
        """Put random numbers and buffers where the step began, and drop the gradients."""
        ...

    def forward(self, index: int, scale: float, *, half: bool = True) -> Root:
        """Run the forward pass of one of the inputs; `half` as the step did, else in the weights' type."""
        ...


def find_cause(step: Rerun) -> Skip:
    """Return why a step was skipped. The model is left as it was before the step; gradients are lost.

    With several ranks all must call this, and all return the same: the cause that one of them found.
    """
    try:
        found = _cause_here(step)
    finally:
        step.rewind()
    if ranks.here().world == 1:
        return found or Skip(UNKNOWN)
    causes = [replace(skip, rank=rank) for rank, skip in enumerate(ranks.gather(found)) if skip is not None]
    return min(causes, key=lambda skip: (skip.is_benign, skip.cause == NORM), default=Skip(REDUCE))


def _cause_here(step: Rerun) -> Skip | None:
    """Return the cause that this rank's own numbers show; None where they are all finite."""
    found = None
    if (name := _first_bad(step.model.named_parameters())) is not None:
        found = Skip(WEIGHTS, tensor=name)
    elif (name := _first_bad(pair for batch in step.inputs for pair in tensors_of(batch))) is not None:
        found = Skip(BATCH, tensor=name)
    if step.together:
        return _together(step, found)
    if found is not None:
        return found
    found = _replay(step, step.scale)
    if found is not None and found.cause in (BACKWARD, NORM) and step.scale > 1:
        return _replay(step, 1.0) or replace(found, cause=SCALE)
    return found


def _together(step: Rerun, known: Skip | None) -> Skip | None:
    """Return the same where every pass needs all ranks: each makes two whole ones, whatever it finds."""
    found, unscaled = _replay(step, step.scale), _replay(step, 1.0)
    if known is not None:
        return known
    if found is not None and found.cause in (BACKWARD, NORM) and step.scale > 1:
        return unscaled or replace(found, cause=SCALE)
    return found


def _first_bad(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity."""
    for name, tensor in named:
        if _is_bad(tensor):
            return name
    return None


def _is_bad(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(ranks.local(tensor.detach())).all())


def _largest(tensors: Iterable[Tensor]) -> float | None:
    """Return the largest magnitude of some tensors, where all of it is finite."""
    found = [float(ranks.local(t.detach()).abs().max()) for t in tensors if t.is_floating_point() and t.numel()]
    return max(found) if found and all(map(math.isfinite, found)) else None


def _replay(step: Rerun, scale: float) -> Skip | None:
    """Run the step once more at a loss scale, and return the first value that is not finite; None for none."""
    step.rewind()
    order = range(len(step.inputs))
    if step.chained:
        for index in order:
            with Probe(step.model) as probe, torch.no_grad():
                root = step.forward(index, scale)
            if (found := _forward_fault(step, index, Root(root.values), probe)) is not None:
                return found
        step.rewind()
        order = order[::-1]
    first: Skip | None = None
    for index in order:
        with Probe(step.model) as probe:
            root = step.forward(index, scale)
            found = _forward_fault(step, index, root, probe)
            if first is None:
                first = found
            if first is not None and not step.together:
                return first
            torch.autograd.backward(list(root.values), list(root.gradients) if root.gradients is not None else None)
            if first is None:
                first = probe.backward
            if first is not None and not step.together:
                return first
    return first or _gradient_fault(step)


def _gradient_fault(step: Rerun) -> Skip | None:
    """Return what is wrong with the gradients of the weights alone. With FSDP their sum is: a fault of no one rank."""
    if step.together:
        return None
    gradients = [(name, p.grad) for name, p in step.model.named_parameters() if p.grad is not None]
    bad = _first_bad(gradients)
    if bad is not None:
        return Skip(BACKWARD, bad.rpartition(".")[0], f"gradient of {bad}")
    norm = float(torch.nn.utils.get_total_norm([gradient for _, gradient in gradients]))
    return None if math.isfinite(norm) else Skip(NORM)


def _forward_fault(step: Rerun, index: int, root: Root, probe: Probe) -> Skip | None:
    """Return what is wrong where a backward pass begins; None where that is finite."""
    bad = next((value for value in root.values if _is_bad(value)), None)
    if bad is None and root.gradients is not None and any(map(_is_bad, root.gradients)):
        over = SCALE if step.scale > 1 else BACKWARD
        return Skip(over if root.loss_is_finite else LOSS, tensor="gradient of the model's output")
    if bad is None:
        return None
    usual = probe.masks if step.together else _usual(step, index)
    unusual = [skip for skip in probe.forward if (skip.module, skip.tensor) not in usual]
    value = f"{float(bad.detach())}" if bad.numel() == 1 else "the model's output"
    return unusual[0] if unusual else Skip(LOSS, tensor=value)


@torch.no_grad()
def _usual(step: Rerun, last: int) -> set[tuple[str, str]]:
    """Return the places that hold infinities without autocast as well: attention masks and the like.

    With a finite loss all of them are harmless; else those that hold minus infinity alone, as masks do.
    """
    step.rewind()
    places: set[tuple[str, str]] = set()
    for index in range(last + 1):
        with Probe(step.model) as probe:
            is_bad = any(map(_is_bad, step.forward(index, 1.0, half=False).values))
            places |= probe.masks if is_bad else {(skip.module, skip.tensor) for skip in probe.forward}
    return places


class Probe:
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

    def __enter__(self) -> Probe:
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
