"""The memory of training, counted in bytes: weights, gradients, optimizer state, and what forward saves for backward.

Counted, not measured: the same on every machine, and without what an allocator keeps or a kernel borrows.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from demi.training import ranks
from demi.training.rng import RandomState
from demi.training.state import Buffers, TrainState
from demi.training.task import Batch, call_loss

FILE = "memory.json"
Bytes = dict[str, int]
"""Bytes by type, such as `float32`."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one rank."""

    weights: Bytes
    gradients: Bytes
    optimizer: Bytes
    activations: Bytes
    """Saved by the forward pass of one batch for its backward pass; autocast's copies of weights in half included."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(sum(part.values()) for part in (self.weights, self.gradients, self.optimizer, self.activations))


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The bytes of a run, and those that the same run has in FP32."""

    precision: str
    own: Memory
    fp32: Memory


def count_memory(state: TrainState, batch: Batch) -> MemoryReport:
    """Count the memory of a run on one batch. The run is left as it was; its optimizer must have made a step.

    The FP32 figures come from a forward pass of an FP32 copy of the model without autocast.
    """
    parameters = list(state.plain_model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    slots = [
        value for slot in state.optimizer.state.values() for value in slot.values()
        if isinstance(value, Tensor) and value.ndim > 0
    ]  # fmt: skip
    own = Memory(
        by_type(parameters),
        by_type(trained),
        by_type(slots),
        saved_for_backward(state, state.plain_model, batch, state.autocast()),
    )
    single = {"float32": sum(4 * ranks.local(p).numel() for p in trained)}
    # AdamW and its like have a certain number of slots a parameter; Kahan's are FP32's no longer.
    kahan = sum(1 for slot in state.optimizer.state.values() for name in slot if "kahan" in name)
    a_parameter = round((len(slots) - kahan) / max(1, len(trained)))
    fp32 = Memory(
        {"float32": sum(4 * ranks.local(p).numel() for p in parameters)},
        dict(single),
        {"float32": single["float32"] * a_parameter} if a_parameter else {},
        own.activations if state.sharded else _activations_in_fp32(state, batch),
    )
    return MemoryReport(state.precision.name, own, fp32)


def _activations_in_fp32(state: TrainState, batch: Batch) -> Bytes:
    model = state.plain_model
    if state.precision.weights is not torch.float32:
        model = copy.deepcopy(model).float()
    return saved_for_backward(state, model, batch, contextlib.nullcontext())


def saved_for_backward(
    state: TrainState, model: nn.Module, batch: Batch, autocast: AbstractContextManager[object]
) -> Bytes:
    """Return the bytes that one forward pass saves, each storage once; those of weights and buffers are not new."""
    random, buffers = RandomState.capture(), Buffers(model)
    known = {ranks.local(t).untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            known.add(tensor.untyped_storage().data_ptr())
            kept.append(tensor)
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
            loss = call_loss(state.task, model, batch)
        del loss
    finally:
        buffers.restore()
        random.restore()
    found: Bytes = {}
    for tensor in kept:
        name = _name(tensor)
        found[name] = found.get(name, 0) + tensor.untyped_storage().nbytes()
    return found


def by_type(tensors: Iterable[Tensor]) -> Bytes:
    """Return the bytes of tensors by type; of sharded ones, this rank's share."""
    found: Bytes = {}
    for tensor in map(ranks.local, tensors):
        found[_name(tensor)] = found.get(_name(tensor), 0) + tensor.numel() * tensor.element_size()
    return found


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
