"""The records of an archive as PyTorch reads them: by its own reader, and by Python's, which is its fallback."""

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
    """One record: its name below the archive's root folder, and a function that reads its bytes."""

    name: str
    read: Callable[[], bytes]


def records(path: Path) -> Iterator[Record]:
    """Yield every record from both readers. A file can be crafted so that they see different content under one name."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            _, _, below = entry.filename.partition("/")
            for name in {entry.filename, below or entry.filename}:
                yield Record(name, functools.partial(archive.read, entry))
    try:
        reader: Any = torch._C.PyTorchFileReader(str(path))
        names = reader.get_all_records()
    except RuntimeError:
        return  # PyTorch's own reader rejects it as well
    for name in names:
        yield Record(name, functools.partial(reader.get_record, name))
