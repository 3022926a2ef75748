"""A deadline for a search: how much of its time is used, and whether it is over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Deadline:
    """So many seconds from the moment it is made; without an end by default."""

    seconds: float = math.inf
    clock: Callable[[], float] = time.perf_counter
    started: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "started", self.clock())

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return self.used >= 1

    @property
    def used(self) -> float:
        """The share of the time that is used; 1 when there was none."""
        return (self.clock() - self.started) / self.seconds if self.seconds > 0 else 1.0
