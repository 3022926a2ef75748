"""Variables that must be equal, taken together: most of a graph's equations say nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
    idle = {number for edge, number in system.edge_equations.items() if edge not in multiplied}
    left: Sequence[Mapping[int, int]] = [each for number, each in enumerate(system.equations) if number not in idle]
    while True:
        kept = []
        for each in left:
            if len(each) == 1 or _is_equality(each):  # most are: no more than the fastest path for them
                join(*each) if len(each) == 2 else join(next(iter(each)), ZERO)
                continue
            terms = _in_classes(each, find)
            if len(terms) == 1:
                join(next(iter(terms)), ZERO)
            elif _is_equality(terms):
                join(*terms)
            elif terms:
                kept.append(terms)
        if len(kept) == len(left):
            return Classes([find(variable) for variable in range(system.count)], kept)
        left = kept


def _is_equality(terms: Mapping[int, int]) -> bool:
    """Return whether an equation says that two variables are equal."""
    return len(terms) == 2 and sum(terms.values()) == 0 and 1 in terms.values()


def _in_classes(equation: Mapping[int, int], find: Callable[[int], int]) -> dict[int, int]:
    """Return an equation between the classes of its variables, without those that cancel or are 0."""
    terms: dict[int, int] = {}
    for variable, coefficient in equation.items():
        if (head := find(variable)) != ZERO:
            terms[head] = terms.get(head, 0) + coefficient
    return {head: coefficient for head, coefficient in terms.items() if coefficient}
