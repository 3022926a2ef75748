"""Two precision plans side by side: which nodes changed side, and which changed only their reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from demi.plan import Decision, PrecisionPlan


@dataclass(frozen=True, slots=True)
class NodeChange:
    """One node whose decision is another; None where the node is not there."""

    was: Decision | None
    now: Decision | None

    @property
    def node(self) -> str:
        """The node's name."""
        return self._any.node

    @property
    def op_type(self) -> str:
        """Its operator."""
        return self._any.op_type

    @property
    def changed_side(self) -> bool:
        """Whether it computes in another precision than before; a node that came or went has not changed side."""
        return self.was is not None and self.now is not None and self.was.is_half != self.now.is_half

    @property
    def _any(self) -> Decision:
        found = self.now or self.was
        assert found is not None, "a change is of at least one decision"
        return found

    def __str__(self) -> str:
        return f"`{self.node}`: {_told(self.was)} -> {_told(self.now)}"


def compare_plans(was: PrecisionPlan, now: PrecisionPlan) -> tuple[NodeChange, ...]:
    """Every node whose precision or reason differs, in graph order of `now`; nodes that are gone come last."""
    return tuple(_changes(was, now))


def _changes(was: PrecisionPlan, now: PrecisionPlan) -> Iterator[NodeChange]:
    for name, decision in now.decisions.items():
        before = was.decisions.get(name)
        if before is None or (before.precision, before.reason) != (decision.precision, decision.reason):
            yield NodeChange(before, decision)
    for name, decision in was.decisions.items():
        if name not in now.decisions:
            yield NodeChange(decision, None)


def _told(decision: Decision | None) -> str:
    return f"{decision.precision.value} ({decision.reason.value})" if decision else "not there"
