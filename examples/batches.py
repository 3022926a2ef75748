"""The random numbers of training batches, for the tasks of the examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def draws(position: Any) -> Iterator[np.random.Generator]:
    """Yield a random generator for each batch from `position.batch` on.

    It follows from the seed, the batch's number and the rank alone, so that a resumed run goes on with the same batches.
    """
    number: int = position.batch
    while True:
        yield np.random.default_rng((position.seed, number, position.rank))
        number += 1
