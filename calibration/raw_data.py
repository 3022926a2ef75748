"""Texts, images and sounds from files, with their labels: lines, tables, and folders of files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from demi.errors import SampleError
from demi.processing.prepared import Prepared, RawRows
from demi.processing.processor import Processor
from demi.tensors import Feeds

TABLES = frozenset({".txt", ".csv", ".tsv", ".jsonl"})
FILES = {
    "image": frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}),
    "audio": frozenset({".wav", ".flac"}),
}
NOUNS = {"text": "texts", "image": "images", "audio": "sounds"}
ROWS_OF_A_SET = 8
"""Rows of one set of samples, whose golden inputs a bundle keeps."""

LABEL = "label"
"""The column of a table with the labels."""


@dataclass(frozen=True, slots=True)
class RawData:
    """Raw rows as they were found: texts, or the paths of files that are read when they are needed."""

    rows: tuple[str | Path, ...]
    pairs: tuple[str, ...]
    labels: tuple[str, ...]
    """One for each row; empty without labels."""
    origin: str

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> RawRows:
        """Return some of the rows, with the contents of their files; texts that are too long are to be truncated."""
        rows = tuple(row if isinstance(row, str) else _read_file(row) for row in self.rows[start:stop])
        return RawRows(rows, self.pairs[start:stop], truncate=True)


def is_raw(source: str | Path) -> bool:
    """Return whether a path holds raw rows rather than arrays: a table, a file, or a folder without `.npz` files."""
    path = Path(source)
    if path.is_dir():
        return not any(path.glob("*.npz")) and any(_media(path))
    return path.suffix.lower() in TABLES or any(path.suffix.lower() in suffixes for suffixes in FILES.values())


def read_raw(source: str | Path, names: Sequence[str]) -> RawData:
    """Read the raw inputs called `names` (`text`, `text` and `text_pair`, `image` or `audio`) from a file or folder.

    Lines are texts; tables have a column for each name, and `label`; folders have files, and a label for each subfolder
    where there are any. Paths in a table are relative to it. Raises SampleError when nothing can be read.
    """
    path = Path(source)
    hint = _what_to_give(names)
    if not path.exists():
        raise SampleError("no such file or folder", where=str(path), hint=hint)
    try:
        found = _read(path, names)
    except UnicodeDecodeError as error:
        raise SampleError("the samples are not UTF-8 text", where=str(path), hint="save the file as UTF-8") from error
    except (csv.Error, msgspec.MsgspecError, OSError) as error:
        raise SampleError(f"the samples cannot be read: {error}", where=str(path), hint=hint) from error
    if not len(found):
        raise SampleError(f"there are no {NOUNS[names[0]]}", where=str(path), hint=hint)
    return found


def sets_of(data: RawData, processor: Processor, most_sets: int) -> list[Feeds]:
    """Return raw rows as sets of the model's inputs, in order, with `ROWS_OF_A_SET` rows each where they fit together."""
    found: list[Feeds] = []
    for start in range(0, len(data), ROWS_OF_A_SET):
        found += [run.feeds for run in prepared(data, processor, start, start + ROWS_OF_A_SET)]
        if len(found) >= most_sets:
            break
    return found[:most_sets]


def prepared(data: RawData, processor: Processor, start: int, stop: int) -> list[Prepared]:
    """Return some rows as the model's inputs: one run, or several for rows that cannot be padded to one size.

    Raises SampleError, naming the data, for a row that is wrong.
    """
    from demi.errors import InputError

    try:
        runs = processor.prepare(data.part(start, stop), together=processor.text is not None)
    except InputError as error:
        raise SampleError(f"{error.message} (counted from row {start})", where=data.origin, hint=error.hint) from error
    return sorted(runs, key=lambda run: run.indices)


def _read(path: Path, names: Sequence[str]) -> RawData:
    origin, first = str(path), names[0]
    if path.is_dir():
        return _read_folder(path, first)
    suffix = path.suffix.lower()
    if suffix == ".txt" and tuple(names) == ("text",):
        lines = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        return RawData(lines, (), (), origin)
    if suffix in (".csv", ".tsv", ".jsonl"):
        return _read_table(path, names, list(_rows_of(path, suffix)))
    if suffix in FILES.get(first, ()):
        return RawData((path,), (), (), origin)
    raise SampleError(f"this is not a file of {NOUNS[first]}", where=origin, hint=_what_to_give(names))


def _what_to_give(names: Sequence[str]) -> str:
    columns = ", ".join((*names, LABEL))
    table = f"a .csv, .tsv or .jsonl with the columns {columns}"
    if suffixes := FILES.get(names[0]):
        return f"give a {' or '.join(sorted(suffixes))} file, a folder of them, or {table}"
    return f"give a .txt of texts, one a line, or {table}" if len(names) == 1 else f"give {table}"


def _rows_of(path: Path, suffix: str) -> Iterator[dict[str, Any]]:
    if suffix == ".jsonl":
        for line in path.read_bytes().splitlines():
            if line.strip():
                yield msgspec.json.decode(line, type=dict[str, Any])
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",")


def _read_table(path: Path, names: Sequence[str], rows: list[dict[str, Any]]) -> RawData:
    for index, row in enumerate(rows):
        for name in names:
            if not isinstance(row.get(name), str):
                raise SampleError(
                    f"row {index} has no `{name}`",
                    where=str(path),
                    hint=f"its columns are {', '.join(map(str, row))}; write {', '.join((*names, LABEL))}",
                )
    first = names[0]
    values = tuple(row[first] if first == "text" else path.parent / row[first] for row in rows)
    pairs = tuple(row[names[1]] for row in rows) if len(names) > 1 else ()
    labelled = [LABEL in row for row in rows]
    labels = tuple(str(row[LABEL]) for row in rows) if rows and all(labelled) else ()
    return RawData(values, pairs, labels, str(path))


def _read_folder(path: Path, kind: str) -> RawData:
    suffixes = FILES.get(kind, frozenset())
    files = sorted(each for each in _media(path) if each.suffix.lower() in suffixes)
    below = [each.parent != path for each in files]
    labels = tuple(each.parent.name for each in files) if files and all(below) else ()
    return RawData(tuple(files), (), labels, str(path))


def _media(path: Path) -> Iterator[Path]:
    """Yield the images and sounds in a folder and the folders in it."""
    known = frozenset().union(*FILES.values())
    for pattern in ("*", "*/*"):
        yield from (each for each in path.glob(pattern) if each.suffix.lower() in known and each.is_file())


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SampleError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from error
