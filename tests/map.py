"""The map of the code, drawn from its imports: `python -m tests.map` counts rooms and arrows and names every circle.

A room is what a reader sees in one folder: a file, or a folder below it. An arrow is an import from one room to another
of the same folder, counted once however many imports stand behind it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.paths import ROOT

FOLDERS = ("demi", "exporter", "calibration", "server", "training")
"""Folders of the checkout. All but `demi` itself are imported as packages below `demi`."""

Graph = Mapping[str, frozenset[str]]
"""For each file, the files that it imports, all as paths in the checkout."""


def sources(root: Path = ROOT) -> dict[str, str]:
    """Return the text of every source file, by its path; the links below `demi/` are not followed."""
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
        if not any(parent.is_symlink() for parent in path.relative_to(root).parents)
        and not any((root / parent).is_symlink() for parent in path.relative_to(root).parents)
    }


def imports(source: str) -> set[str]:
    """Return every module that a source file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def module_of(path: str) -> str:
    """Return the name by which a file is imported: `server/errors.py` is `demi.server.errors`."""
    dotted = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return dotted if dotted == "demi" or dotted.startswith("demi.") else f"demi.{dotted}"


def graph(files: Mapping[str, str]) -> Graph:
    """Return which file imports which. `from package import name` counts as the module `name` where there is one."""
    paths = {module_of(path): path for path in files}
    return {
        path: frozenset(paths[name] for name in _modules(source, paths) if paths[name] != path)
        for path, source in files.items()
    }


def _modules(source: str, known: Mapping[str, str]) -> Iterator[str]:
    """Yield the known modules that a source names, each at its most exact."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield from (name for name in [full if full in known else node.module] if name in known)


def circles(edges: Graph) -> list[frozenset[str]]:
    """Return the sets of files that import each other, directly or through others: Tarjan's components of two or more."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[frozenset[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(frozenset(members))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def rooms(edges: Graph, folder: str) -> set[str]:
    """Return what a reader sees in a folder: its files but `__init__.py`, and the folders below it."""
    inside = (path.removeprefix(f"{folder}/") for path in edges if path.startswith(f"{folder}/"))
    return {path.split("/")[0] for path in inside} - {"__init__.py"}


def arrows(edges: Graph, folder: str) -> set[tuple[str, str]]:
    """Return the imports between the rooms of a folder."""

    def room(path: str) -> str:
        return path.removeprefix(f"{folder}/").split("/")[0] if path.startswith(f"{folder}/") else ""

    pairs = {(room(path), room(other)) for path, others in edges.items() for other in others}
    return {(a, b) for a, b in pairs if a and b and a != b and "__init__.py" not in (a, b)}


def main() -> int:
    """Print rooms and arrows of each folder, and every circle. Return 1 where there is a circle."""
    edges = graph(sources())
    print(f"{'folder':24} {'rooms':>6} {'arrows':>7}")
    folders = sorted({parent for path in edges for parent in map(str, Path(path).parents) if parent != "."})
    for folder in folders:
        print(f"{folder:24} {len(rooms(edges, folder)):6} {len(arrows(edges, folder)):7}")
    found = circles(edges)
    print(f"files {len(edges)}, circles {len(found)}")
    for circle in found:
        print("circle:", ", ".join(sorted(circle)))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
