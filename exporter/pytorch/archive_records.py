"""The records of an archive as PyTorch will read them: through its own reader, and through Python's where it falls back to that."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its name below the archive's own folder, and its bytes when they are asked for."""

    name: str
    read: Callable[[], bytes]


def records(path: Path) -> Iterator[Record]:
    """Every record, from both readers. A file can be made so that they see different things under one name."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            _, _, below = entry.filename.partition("/")
            for name in {entry.filename, below or entry.filename}:
                yield Record(name, functools.partial(archive.read, entry))
    try:
        reader: Any = torch._C.PyTorchFileReader(str(path))
        names = reader.get_all_records()
    except RuntimeError:
        return  # PyTorch's own reader will not read it either
    for name in names:
        yield Record(name, functools.partial(reader.get_record, name))
