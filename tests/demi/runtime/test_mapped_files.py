"""Pages of mapped files are dropped, and their contents stay."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from demi.runtime.mapped_files import release_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of mappings")

SIZE = 8 << 20


def resident_kb(path: Path) -> int:
    """Return how much of a file's mappings is in this process's memory, in KiB."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def test_pages_are_dropped_and_come_back(tmp_path):
    """After the release nothing of the file is resident, and it reads as before."""
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        sum(mapped[::4096])
        assert resident_kb(path) >= SIZE >> 11

        assert release_pages(path) >= SIZE

        assert resident_kb(path) < SIZE >> 13
        assert bytes(range(256)) == mapped[:256]


def test_a_file_that_can_be_written_to_is_left_alone(tmp_path):
    """Dropping the pages of a writable mapping could lose what was written."""
    path = tmp_path / "written.bin"
    path.write_bytes(bytes(SIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = 1

        assert 0 == release_pages(path)
        assert 1 == mapped[0]


def test_a_file_that_is_not_mapped(tmp_path):
    """Nothing is dropped for a file that is not mapped."""
    assert 0 == release_pages(tmp_path / "none")
