"""Read untrusted archives of arrays: sizes in the zip directory and in array headers are checked before unpacking.

Zip compresses zeros by a factor of a thousand, so a small file could otherwise fill the reader's memory.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from demi.tensors import Array

FREE_BYTES = 256 << 20
"""Bytes that an archive of any size may unpack to; small machines can spare that much."""

MOST_GROWTH = 20
"""The most bytes of a larger archive when unpacked, as a multiple of its size. Token ids and masks compress tenfold,
weights hardly."""

MOST_ENTRIES = 100_000
"""Most records in an archive. The largest models have about ten thousand tensors."""

_RECORD_BYTES = 256
"""Bytes of one record in a zip directory: an upper bound for names of usual length."""

_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"
"""Signatures of the end records of a zip directory; the second exists in zip64 archives only."""

MAGIC = b"\x93NUMPY"
"""The first bytes of a `.npy` file."""


def check_archive(file: IO[bytes]) -> None:
    """Raise ValueError for a zip archive with too many records, or too many unpacked bytes for its size.

    A file that is not a zip archive passes: its reader reports that.
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
        raise ValueError(f"it unpacks to {unpacked:,} bytes (at most {most:,} from {size:,}): save it uncompressed")


def _directory_bytes(file: IO[bytes], size: int) -> int:
    """Return the size of the zip directory as its end record states it; 0 without one."""
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
    """Read the arrays of an `.npz` file by name; objects are never unpickled.

    Raises ValueError for an archive that `check_archive` rejects and for an array whose header promises more than its
    record holds, and whatever NumPy and zipfile raise for a damaged file.
    """
    with path.open("rb") as file:
        check_archive(file)
        if not zipfile.is_zipfile(file):
            raise ValueError("it is not a file of arrays, or holds Python objects")
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                _check_array(archive, entry)
        file.seek(0)
        with np.load(file, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}


def is_array(path: Path) -> bool:
    """Return whether a file is a single array as numpy.save writes it; reads its first bytes only."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _check_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Raise ValueError when an array's header promises more than its record holds: NumPy would allocate all of it first."""
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
        raise ValueError(f"`{entry.filename}` claims {promised:,} bytes, but holds {max(held, 0):,}")
