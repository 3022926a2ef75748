"""Variables that must be equal, taken together: most of a graph's equations say nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from demi.exporter.rescaling.equations import ZERO


@dataclass(frozen=True, slots=True)
class Classes:
    """The class of every variable, and the equations that are left between classes."""

    of: Sequence[int]
    """The class of each variable; `ZERO` for those that are pinned."""
    equations: Sequence[Mapping[int, int]]


def classes_of(count: int, equations: Iterable[Mapping[int, int]]) -> Classes:
    """Merge what is equal, until no equation says that one class is another, or 0."""
    parent = list(range(count))

    def find(variable: int) -> int:
        while parent[variable] != variable:
            parent[variable] = parent[parent[variable]]
            variable = parent[variable]
        return variable

    def join(one: int, other: int) -> None:
        first, second = sorted((find(one), find(other)))
        parent[second] = first  # ZERO is the smallest, and stays the head of its class

    left = [dict(each) for each in equations]
    while True:
        kept = []
        for each in left:
            terms = _between(each, find)
            if len(terms) == 1:
                join(next(iter(terms)), ZERO)
            elif len(terms) == 2 and set(terms.values()) == {1, -1}:
                join(*terms)
            elif terms:
                kept.append(terms)
        if len(kept) == len(left):
            return Classes([find(variable) for variable in range(count)], kept)
        left = kept


def _between(equation: Mapping[int, int], find: object) -> dict[int, int]:
    """The equation in classes, divided by what its coefficients have in common; pinned terms are 0."""
    terms: dict[int, int] = {}
    for variable, coefficient in equation.items():
        head = find(variable)  # type: ignore[operator]
        if head != ZERO:
            terms[head] = terms.get(head, 0) + coefficient
    return {head: coefficient for head, coefficient in terms.items() if coefficient}
