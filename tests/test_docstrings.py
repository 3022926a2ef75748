"""Docstrings, as CONTRIBUTING.md wants them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.paths import ROOT

ROOMS = ("demi", "exporter", "calibration", "server", "training", "bench", "examples")

CLAUSES = ("What", "How", "Whether", "Where", "Which")
"""Words that begin a clause: "How it is compiled" is "Settings with which it is compiled"."""


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each docstring: of modules, classes, functions, and attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def clauses(source: str) -> list[int]:
    """Return the lines of docstrings that begin with a clause."""
    return [line for line, text in docstrings(source) if text.split(maxsplit=1)[:1] and text.split()[0] in CLAUSES]


@pytest.mark.parametrize("room", ROOMS)
def test_none_begins_with_a_clause(room):
    """It begins with a verb or a noun."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for line in clauses(path.read_text())
    ]
    assert not found


@pytest.mark.parametrize(
    ("source", "lines"),
    [('"""How it works."""', [1]), ("class A:\n    x: int\n    '''Whether it is.'''", [3]), ('"""Number."""', [])],
    ids=["module", "attribute", "noun"],
)
def test_clauses_are_found(source, lines):
    """In every kind of docstring."""
    assert clauses(source) == lines
