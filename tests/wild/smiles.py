"""Molecules from SMILES: the part of the language that the reactions here use, without stereochemistry."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import shortest_path

from demi.tensors import Array

NUMBERS = {"B": 5, "C": 6, "N": 7, "O": 8, "F": 9, "P": 15, "S": 16, "Cl": 17, "Br": 35, "I": 53}
VALENCES = {"B": (3,), "C": (4,), "N": (3, 5), "O": (2,), "P": (3, 5), "S": (2, 4, 6)}
"""Number of bonds of an element, hydrogens included; halogens have one."""
_TOKEN = re.compile(
    r"\[(?P<inner>[^\]]+)\]|(?P<atom>Br|Cl|[BCNOFPSIbcnops])|(?P<bond>[-=#])|(?P<ring>\d)|(?P<fork>[()])"
)
_INNER = re.compile(r"(?P<element>[A-Z][a-z]?|[bcnops])(?:H(?P<hydrogens>\d?))?(?P<charge>[+-]\d?)?")
_ORDERS = {"-": 1.0, "=": 2.0, "#": 3.0}


@dataclass(frozen=True, slots=True)
class Molecule:
    """Atoms in their order in the text."""

    numbers: tuple[int, ...]
    """Atomic numbers."""
    neighbours: tuple[int, ...]
    """Number of atoms that each is bound to, hydrogens included."""
    distances: Array
    """Number of bonds between any two atoms, -1 if they are not connected."""


@dataclass(slots=True)
class _Atom:
    symbol: str
    hydrogens: int | None = None
    """None if they are implicit."""
    orders: tuple[float, ...] = ()

    @property
    def aromatic(self) -> bool:
        return self.symbol.islower()

    @property
    def element(self) -> str:
        return self.symbol.capitalize()

    def neighbours(self) -> int:
        """Return the number of atoms that it is bound to, with the hydrogens that fill its valence."""
        if self.hydrogens is not None:
            return len(self.orders) + self.hydrogens
        used = sum(self.orders) + (1 if self.aromatic and self.symbol in "bcnp" else 0)
        room = next((valence for valence in VALENCES.get(self.element, (1,)) if valence >= used), used)
        return len(self.orders) + int(room - used)


def read_smiles(text: str) -> Molecule:
    """Return the molecule of a SMILES. Raises ValueError for syntax that this reader does not support."""
    atoms: list[_Atom] = []
    bonds: list[tuple[int, int]] = []
    rings: dict[str, tuple[int, float | None]] = {}
    forks: list[int] = []
    last, order = -1, None
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"{text!r} at {at}: not of the SMILES that are read here")
        at = match.end()
        if match["bond"]:
            order = _ORDERS[match["bond"]]
        elif match["fork"] == "(":
            forks.append(last)
        elif match["fork"]:
            last = forks.pop()
        elif match["ring"]:
            if match["ring"] in rings:
                other, first = rings.pop(match["ring"])
                _bind(atoms, bonds, other, last, order if order is not None else first)
            else:
                rings[match["ring"]] = (last, order)
            order = None
        else:
            atoms.append(_atom(match["inner"], match["atom"]))
            if last >= 0:
                _bind(atoms, bonds, last, len(atoms) - 1, order)
            last, order = len(atoms) - 1, None
    return _molecule(atoms, bonds)


def _atom(inner: str | None, plain: str | None) -> _Atom:
    if plain:
        return _Atom(plain)
    match = _INNER.fullmatch(inner or "")
    if match is None:
        raise ValueError(f"[{inner}] is not an atom that this reader supports")
    hydrogens = match["hydrogens"]
    return _Atom(match["element"], 0 if hydrogens is None else int(hydrogens or 1))


def _bind(atoms: list[_Atom], bonds: list[tuple[int, int]], a: int, b: int, order: float | None) -> None:
    """Bind two atoms: a bond without a symbol is single, and one between aromatic atoms adds an electron at each."""
    for atom in (atoms[a], atoms[b]):
        atom.orders += (order if order is not None else 1.0,)
    bonds.append((a, b))


def _molecule(atoms: list[_Atom], bonds: list[tuple[int, int]]) -> Molecule:
    beside = np.zeros((len(atoms), len(atoms)))
    for a, b in bonds:
        beside[a, b] = beside[b, a] = 1
    apart = shortest_path(beside, unweighted=True)
    return Molecule(
        tuple(NUMBERS[atom.element] for atom in atoms),
        tuple(atom.neighbours() for atom in atoms),
        np.where(np.isinf(apart), -1, apart).astype(np.int64),
    )
