"""The random number generators of a process: captured, restored and stored."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """The states of PyTorch's generators (CPU, and each GPU in use), Python's and NumPy's."""

    torch: Tensor
    cuda: tuple[Tensor, ...]
    python: Any
    numpy: Any

    @classmethod
    def capture(cls) -> RandomState:
        """Return the states of all generators now."""
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
        return cls(torch.get_rng_state(), cuda, random.getstate(), np.random.get_state())

    def restore(self) -> None:
        """Put all generators back into these states."""
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda)[: torch.cuda.device_count()])
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return PyTorch's states as tensors of bytes, by names that begin with `name`."""
        return {f"{name}.torch": self.torch} | {f"{name}.cuda.{index}": each for index, each in enumerate(self.cuda)}

    def plain(self) -> dict[str, Any]:
        """Return the other states as plain data for JSON."""
        kind, keys, *rest = self.numpy
        return {"python": self.python, "numpy": [kind, keys.tolist(), *rest]}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], name: str) -> RandomState:
        """Return the states that `tensors(name)` and `plain` made."""
        version, internal, gauss = plain["python"]
        kind, keys, *rest = plain["numpy"]
        count = sum(key.startswith(f"{name}.cuda.") for key in tensors)
        return cls(
            tensors[f"{name}.torch"],
            tuple(tensors[f"{name}.cuda.{index}"] for index in range(count)),
            (version, tuple(internal), gauss),
            (kind, np.array(keys, np.uint32), *rest),
        )


def seed_everything(seed: int) -> None:
    """Seed PyTorch, Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def own_numbers(*position: int) -> Iterator[None]:
    """Give the block random numbers that follow from `position` alone, and leave the generators as they were.

    Data that is read so draws the same augmentations whether a run was resumed or not, and takes none from the model.
    """
    before = RandomState.capture()
    seed_everything(int(np.random.SeedSequence(position).generate_state(1)[0]))
    try:
        yield
    finally:
        before.restore()


def cpu_threads() -> int:
    """Return the number of threads that compute on the CPU: sums are split among them, so the last bits depend on it."""
    return torch.get_num_threads()
