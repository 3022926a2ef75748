"""Progress of a long operation: named phases, and the fraction of a phase that is done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Report = Callable[[float], None]
"""Takes the fraction of a phase that is done, from 0 to 1."""

Step = Callable[[str], AbstractContextManager[Report | None]]
"""Context manager for a named phase; yields an optional callback that takes the fraction done."""


def silent(_: str) -> AbstractContextManager[Report | None]:
    """Show nothing: the default Step."""
    return nullcontext()
