"""Deadline of a search, with the share of its time that is used."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Deadline:
    """A deadline `seconds` after its creation; infinite by default."""

    seconds: float = math.inf
    clock: Callable[[], float] = time.perf_counter
    started: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "started", self.clock())

    @property
    def passed(self) -> bool:
        """True once the time is up."""
        return self.used >= 1

    @property
    def used(self) -> float:
        """The share of the time that is used; 1 if `seconds` is not positive."""
        return (self.clock() - self.started) / self.seconds if self.seconds > 0 else 1.0
