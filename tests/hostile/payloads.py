"""Payloads that would create a folder if they were executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


class Touch:
    """Object whose pickle creates a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def torch_pickle(mark: Path) -> bytes:
    """Return the payload as torch.save writes it."""
    held = io.BytesIO()
    torch.save(Touch(mark), held)
    return held.getvalue()


def plain_pickle(mark: Path) -> bytes:
    """Return the payload as the pickle module writes it."""
    return pickle.dumps(Touch(mark))


def python(mark: Path) -> str:
    """Return the payload as a Python expression."""
    return f"__import__('os').mkdir({str(mark)!r})"


class Archive:
    """Records of a zip archive, for editing; a record is found by the end of its name."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            self.records = {name: archive.read(name) for name in archive.namelist()}
        self.root = next(iter(self.records)).split("/")[0]

    def name(self, ending: str) -> str:
        """Return the full name of a record."""
        return next(name for name in self.records if name.endswith(ending))

    def put(self, ending: str, data: bytes) -> None:
        """Change a record, or add one below the archive's folder."""
        known = [name for name in self.records if name.endswith(ending)]
        self.records[known[0] if known else f"{self.root}/{ending}"] = data

    def json(self, ending: str) -> Any:
        """Return a decoded JSON record."""
        return json.loads(self.records[self.name(ending)])

    def put_json(self, ending: str, document: Any) -> None:
        """Change a JSON record."""
        self.put(ending, json.dumps(document).encode())

    def write(self, path: Path) -> Path:
        """Write the archive uncompressed, as PyTorch does."""
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in self.records.items():
                archive.writestr(name, data)
        return path
