"""The task's batches, from where a run is, on its device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from demi.errors import InputError
from demi.training.request import TrainRequest
from demi.training.rng import own_numbers
from demi.training.state import TrainState
from demi.training.task import Batch, Position, blaming, to_device

MEND = "mend the task, and go on with --resume"


class Batches:
    """The task's batches on the run's device. Random numbers that reading them draws are their own."""

    def __init__(self, request: TrainRequest, state: TrainState, number: int | None = None) -> None:
        """Begin where the run is, or at the batch of a number."""
        self._request, self._device, self._rank = request, state.device, state.ranks.rank
        self._number = state.counters.batches if number is None else number
        position = Position(request.seed, self._number, state.ranks.rank, state.ranks.world)
        with self._numbers(), blaming("batches", MEND):
            found = request.task.batches(position)
            if not isinstance(found, Iterable):
                raise InputError(
                    f"the task's batches returned a {type(found).__name__}", where="TASK", hint="yield batches from it"
                )
            self._batches = iter(found)

    def take(self, count: int) -> list[Batch]:
        """Return the next batches, fewer where the data ends."""
        taken: list[Batch] = []
        while len(taken) < count:
            try:
                with self._numbers(), blaming("batches", MEND):
                    taken.append(to_device(next(self._batches), self._device))
            except StopIteration:
                break
            self._number += 1
        return taken

    def _numbers(self) -> contextlib.AbstractContextManager[None]:
        return own_numbers(self._request.seed, self._number, self._rank)
