"""Options of all sections of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setup:
    """Options of all sections: connections, threads, seconds per turn, rounds, and the peers' interpreters by name."""

    counts: tuple[int, ...]
    threads: int
    seconds: float
    rounds: int
    peers: Mapping[str, Path]
