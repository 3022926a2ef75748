"""Variables that must be equal, taken together: most of a graph's equations say nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from demi.exporter.rescaling.equations import ZERO, Edge, System


@dataclass(frozen=True, slots=True)
class Classes:
    """The class of every variable, and the equations that are left between classes."""

    of: Sequence[int]
    """The class of each variable; `ZERO` for those that are pinned."""
    equations: Sequence[Mapping[int, int]]


def classes_of(system: System, multiplied: Collection[Edge] = ()) -> Classes:
    """Merge what is equal where only these edges may get a Mul, until no equation says that one class is another, or 0."""
    parent = list(range(system.count))

    def find(variable: int) -> int:
        while (above := parent[variable]) != variable:
            parent[variable] = variable = parent[above]
        return variable

    def join(one: int, other: int) -> None:
        first, second = sorted((find(one), find(other)))
        parent[second] = first  # ZERO is the smallest, and stays the head of its class

    for one, other in system.ties(multiplied):
        join(one, other)
    left: Sequence[Mapping[int, int]] = system.equations
    while True:
        kept = []
        for each in left:
            terms: dict[int, int] = {}
            for variable, coefficient in each.items():
                if (head := find(variable)) != ZERO:
                    terms[head] = terms.get(head, 0) + coefficient
            terms = {head: coefficient for head, coefficient in terms.items() if coefficient}
            if len(terms) == 1:
                join(next(iter(terms)), ZERO)
            elif len(terms) == 2 and sum(terms.values()) == 0 and 1 in terms.values():
                join(*terms)
            elif terms:
                kept.append(terms)
        if len(kept) == len(left):
            return Classes([find(variable) for variable in range(system.count)], kept)
        left = kept
