"""The processes that train one model together: who this one is, and what all of them agree on.

`torchrun` starts them and sets RANK, WORLD_SIZE and LOCAL_RANK; one process alone needs none of this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor, distributed

from demi.errors import InputError

SHARDS = ("", "ddp", "fsdp")
"""No sharing; a copy of the model on each rank; or a share of the weights on each rank."""

LOST_AFTER = timedelta(minutes=10)
"""A rank that does not answer for so long is lost; an evaluation or a checkpoint may keep the others waiting."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train the same model."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this process writes logs and checkpoints."""
        return self.rank == 0


def here() -> Ranks:
    """Return this process's place; the only one where no group was opened."""
    is_open = distributed.is_available() and distributed.is_initialized()
    return Ranks(distributed.get_rank(), distributed.get_world_size()) if is_open else Ranks()


@contextmanager
def group(shard: str, device: torch.device) -> Iterator[Ranks]:
    """Join the ranks that `torchrun` started, for this block.

    Raises InputError where `shard` is asked for without `torchrun`, and where there are several processes without it:
    each would train a model of its own into the same folder.
    """
    if here().world > 1:  # whoever called has opened it, such as Ray's TorchTrainer
        if not shard:
            raise InputError("several ranks train one model", where="shard", hint="set it to ddp or fsdp")
        yield here()
        return
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if not shard:
        if started > 1:
            raise InputError(
                f"{started} processes were started to train one model", where="--shard", hint="add --shard ddp or fsdp"
            )
        yield Ranks()
        return
    if "RANK" not in os.environ:
        raise InputError(
            f"--shard {shard} needs the processes that torchrun starts",
            where="--shard",
            hint=f"torchrun --nproc-per-node 2 -m demi train ... --shard {shard}",
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=LOST_AFTER)
    try:
        yield here()
        distributed.barrier()  # a rank that leaves early ends the connections of those that still use them
    finally:
        distributed.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """Return the GPU of this rank where the device is `cuda` without a number."""
    is_open: bool = device.type == "cuda" and device == torch.device("cuda")
    if is_open and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def all_true(value: bool, device: torch.device) -> bool:
    """Return whether `value` is true on every rank; all of them must call this."""
    if here().world == 1:
        return value
    flag = torch.tensor(float(value), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MIN)
    return bool(flag)


def mean(value: float, device: torch.device) -> float:
    """Return the mean over the ranks; all of them must call this."""
    if here().world == 1:
        return value
    total = torch.tensor(value, device=device, dtype=torch.float32)
    distributed.all_reduce(total)
    return float(total) / here().world


def gather(value: Any) -> list[Any]:
    """Return every rank's value, by rank; all of them must call this."""
    if here().world == 1:
        return [value]
    found: list[Any] = [None] * here().world
    distributed.all_gather_object(found, value)
    return found


def barrier() -> None:
    """Wait until every rank is here."""
    if here().world > 1:
        distributed.barrier()


def local(tensor: Tensor) -> Tensor:
    """Return this rank's share of a tensor; a tensor that is not sharded is its own."""
    share: Any = getattr(tensor, "to_local", None)
    return tensor if share is None else cast(Tensor, share())
