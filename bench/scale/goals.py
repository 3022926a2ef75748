"""Goals: a measured number against its limit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """A measured number, and the limit that it should keep: at least, or at most."""

    what: str
    found: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Return whether the number keeps the limit."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"  {'met    ' if self.met else 'NOT MET'} {self.what}: {self.found:.3g} (goal {sign} {self.limit:g})"
