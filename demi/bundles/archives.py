"""Archives from outside, weighed before they are unpacked: what a zip's directory and an array's header say is checked first.

Zip stores a row of zeros a thousand times smaller, so that a file that is mailed may fill the memory of who reads it.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from demi.tensors import Array

FREE_BYTES = 256 << 20
"""What any archive may unpack to, however small it is: a modest machine has that to spare."""

MOST_GROWTH = 20
"""How many times its own size a larger one may unpack to. Token ids and masks shrink to a tenth; trained weights hardly."""

MOST_ENTRIES = 100_000
"""Records in an archive. The largest models have some ten thousand tensors."""

_RECORD_BYTES = 256
"""What the zip's directory spends on a record whose name is of a common length, and more."""

_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"
"""How the records at a zip's end begin; the second is there where numbers of four bytes do not suffice."""

MAGIC = b"\x93NUMPY"
"""How an array begins in a `.npy` file."""


def check_archive(file: IO[bytes]) -> None:
    """Raise ValueError for a zip archive with more records, or more bytes in them, than one of its size may have.

    What is no zip archive passes: its reader will say so.
    """
    size = file.seek(0, 2)
    if _directory_bytes(file, size) > MOST_ENTRIES * _RECORD_BYTES:
        raise ValueError(f"it holds more than {MOST_ENTRIES:,} records, or their names fill its directory")
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise ValueError(f"it holds {len(entries):,} records (at most {MOST_ENTRIES:,})")
    unpacked, most = sum(entry.file_size for entry in entries), max(FREE_BYTES, MOST_GROWTH * size)
    if unpacked > most:
        raise ValueError(f"it unpacks to {unpacked:,} bytes (at most {most:,} from {size:,}): write it uncompressed")


def _directory_bytes(file: IO[bytes], size: int) -> int:
    """How long the directory of a zip says it is; zero where there is none."""
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 16:
        return 0
    held = int.from_bytes(tail[at + 12 : at + 16], "little")
    wide = tail.rfind(_END_64, 0, at)
    return max(
        held if held != 0xFFFFFFFF else 0, int.from_bytes(tail[wide + 40 : wide + 48], "little") if wide >= 0 else 0
    )


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` file by name.

    Raises ValueError for more than `check_archive` allows and for an array larger than what is there of it, and
    whatever NumPy and zipfile make of a damaged file. Objects are never unpickled.
    """
    with path.open("rb") as file:
        check_archive(file)
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no file of arrays, or holds Python objects")
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                _check_array(archive, entry)
        file.seek(0)
        with np.load(file, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}


def is_array(path: Path) -> bool:
    """Whether a file is a single array, as numpy.save writes it; only its first bytes are read."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _check_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Raise ValueError for an array whose header promises more than its record holds: NumPy makes room for it first."""
    with archive.open(entry) as member:
        stream: Any = member
        if stream.read(len(MAGIC)) != MAGIC:
            return
    with archive.open(entry) as member:
        stream = member
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
        promised, held = math.prod(shape) * max(dtype.itemsize, 1), entry.file_size - stream.tell()
    if not dtype.hasobject and promised > max(held, 0):
        raise ValueError(f"`{entry.filename}` says it is {promised:,} bytes long, and {max(held, 0):,} are there")
