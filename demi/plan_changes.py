"""Differences between two precision plans: nodes that changed precision, and nodes that changed only their reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from demi.plan import Decision, PrecisionPlan


@dataclass(frozen=True, slots=True)
class NodeChange:
    """One node whose decision differs; None stands for a plan that does not have the node."""

    was: Decision | None
    now: Decision | None

    @property
    def node(self) -> str:
        """Return the node's name."""
        return self._any.node

    @property
    def op_type(self) -> str:
        """Return its operator."""
        return self._any.op_type

    @property
    def changed_precision(self) -> bool:
        """Return whether it computes in another precision than before; False for a node that is in one plan only."""
        return self.was is not None and self.now is not None and self.was.is_half != self.now.is_half

    @property
    def _any(self) -> Decision:
        found = self.now or self.was
        assert found is not None, "a change is of at least one decision"
        return found

    def __str__(self) -> str:
        return f"`{self.node}`: {_describe(self.was)} -> {_describe(self.now)}"


def compare_plans(was: PrecisionPlan, now: PrecisionPlan) -> tuple[NodeChange, ...]:
    """Return every node whose precision or reason differs, in graph order of `now`; removed nodes come last."""
    return tuple(_changes(was, now))


def _changes(was: PrecisionPlan, now: PrecisionPlan) -> Iterator[NodeChange]:
    for name, decision in now.decisions.items():
        before = was.decisions.get(name)
        if before is None or (before.precision, before.reason) != (decision.precision, decision.reason):
            yield NodeChange(before, decision)
    for name, decision in was.decisions.items():
        if name not in now.decisions:
            yield NodeChange(decision, None)


def _describe(decision: Decision | None) -> str:
    return f"{decision.precision.label} ({decision.reason.value})" if decision else "absent"
