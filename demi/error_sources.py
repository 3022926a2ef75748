"""Sources of a plan's predicted error: half nodes, and groups of nodes that were measured together."""

from __future__ import annotations

from dataclasses import dataclass

from demi.plan import Decision, PrecisionPlan


@dataclass(frozen=True, slots=True)
class ErrorSource:
    """A node that was measured alone, or several whose errors were only measured together."""

    nodes: tuple[Decision, ...]
    share: float
    """Share of the predicted squared error, of all of them together."""

    @property
    def label(self) -> str:
        """Return the node's name, or the first one's and the number of others."""
        first, others = self.nodes[0].node, len(self.nodes) - 1
        return f"{first} and {others} more" if others else first

    @property
    def operators(self) -> str:
        """Return the operators, each once."""
        return ", ".join(dict.fromkeys(decision.op_type for decision in self.nodes))


def error_sources(plan: PrecisionPlan) -> list[ErrorSource]:
    """Return the sources of error of a plan, the largest share first. Nodes that round nothing are left out."""
    groups: dict[int | str, list[Decision]] = {}
    for decision in plan.computing:
        if decision.is_half and decision.share:
            groups.setdefault(decision.group or decision.node, []).append(decision)
    found = [ErrorSource(tuple(nodes), sum(node.share or 0.0 for node in nodes)) for nodes in groups.values()]
    return sorted(found, key=lambda source: -source.share)
