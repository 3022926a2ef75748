"""References in docstrings and comments: the files, modules and names of this repository that they mention.

Only text is read; nothing is imported. A reference is one of

- a path with a known ending, such as `docs/http.md`, from the root, a source folder or the file's own folder;
- a file name alone, such as `main.py`, that lies anywhere in the repository;
- a dotted name in backticks that starts at a top-level package, such as `demi.files.write_whole`;
- an identifier in backticks, such as `write_whole`, that some code uses: one that was renamed is used nowhere.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any

from tests.readme import ROOT

CODE = ("demi", "exporter", "calibration", "server", "tests", "bench", "examples")
"""Folders of Python files; `demi/server` and its like are links to their neighbours and are not entered."""

FILE = re.compile(r"(?<![\w./<>{}*:~-])((?:[\w.-]+/)*[\w-]+(?:\.\w+)*\.(?:py|md|toml|html))\b(?!\w|/|\*)")
DOTTED = re.compile(r"`((?:demi|tests|bench|examples)(?:\.\w+)+)(?:\(\))?`")
COMMENT = re.compile(r"(?:^|(?<=\s))#\s.*$", re.MULTILINE)
"""A comment; a hash in a string that stands between blanks is taken for one, too, which does no harm."""

IDENTIFIER = re.compile(r"`([A-Za-z_]\w*(?:\.\w+)*)(?:\(\))?`")
LIKE_CODE = re.compile(r"_|[a-z][A-Z]|\.")
FOREIGN = {
    "cudaError_t",
    "engine_host_code_allowed",
    "use_fp32_acc",
    "shm_open",
    "v1alpha1_supported_model_format",
    "TARGET",
    "num_detections",
}
"""Names of other projects, and placeholders, that comments mention and no code of ours uses."""

MADE_FILES = {"report.html", "bench.html", "demi.toml"}
"""Files that Demi writes or a user has; everything else is in the repository."""


def python_files() -> list[Path]:
    """Return every Python file of the repository, each one once."""
    return sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))


def missing_references(source: str, path: Path) -> list[str]:
    """Return what the docstrings and comments of a Python file mention and the repository does not have."""
    found = {
        name
        for text in prose(source)
        for name in (*missing_files_named(text, path.parent), *missing_dotted_names(text), *unused_identifiers(text))
    }
    return sorted(found)


def prose(source: str) -> list[str]:
    """Return a file's comments, its docstrings, and the strings that describe a constant or a field."""
    return [*(node.value.value for node in _descriptions(source)), *COMMENT.findall(source)]


@functools.cache
def _descriptions(source: str) -> list[Any]:
    """Return the statements that are a string and nothing else."""
    statements = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr))
    return [node for node in statements if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)]


def missing_files_named(text: str, folder: Path) -> list[str]:
    return [name for name in FILE.findall(text) if name not in MADE_FILES and not _is_file(name, folder)]


def missing_dotted_names(text: str) -> list[str]:
    return [name for name in DOTTED.findall(text) if not resolves(name)]


def unused_identifiers(text: str) -> list[str]:
    """Return identifiers in backticks of which some part stands in no line of code."""
    return [
        name
        for name in IDENTIFIER.findall(text)
        if LIKE_CODE.search(name)
        and not name.startswith("DEMI_")  # variables: their names are put together from the flags
        and name not in _file_names()
        and not set(name.split(".")) <= used_words() | FOREIGN
    ]


@functools.cache
def used_words() -> frozenset[str]:
    """Return every word that the repository's code uses: names, and words within strings that are not docstrings."""
    files = [path for path in python_files() if path != ROOT / "tests" / "test_docs.py"]  # which holds wrong ones
    return frozenset(word for path in files for word in _words_of_code(path.read_text()))


def _words_of_code(source: str) -> list[str]:
    lines = source.splitlines()
    for node in _descriptions(source):
        lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return re.findall(r"\w+", COMMENT.sub("", "\n".join(lines)))


def _is_file(name: str, folder: Path) -> bool:
    if "/" not in name:
        return name in _file_names()
    return any((base / name).exists() for base in (ROOT, folder, *(ROOT / each for each in CODE)))


@functools.cache
def _file_names() -> frozenset[str]:
    documents = [*ROOT.glob("*.*"), *(ROOT / "docs").glob("*.md"), *(ROOT / "calibration").rglob("*.html")]
    return frozenset(path.name for path in (*python_files(), *documents))


def resolves(dotted: str) -> bool:
    """Return whether a dotted name is a package, a module, or a name that a module defines or imports."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:count])
        if place.with_suffix(".py").is_file() or place.is_dir():
            module = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
            rest = parts[count:]
            return not rest or (module.is_file() and _names(module, rest))
    return False


def _names(module: Path, attributes: list[str]) -> bool:
    """Return whether a module's text names every attribute: as a definition, a field, an assignment or a string."""
    text = module.read_text()
    return all(re.search(rf"\b{re.escape(name)}\b", text) for name in attributes)
