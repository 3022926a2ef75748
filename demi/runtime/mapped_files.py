"""Pages of mapped files that a process has read and need not keep: Linux reads them again when they are touched."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

_MADV_DONTNEED = 4
"""`madvise(2)` of Linux: pages of a read-only mapping are dropped, and come back from the file."""
_MAPS = Path("/proc/self/maps")


def release_pages(path: Path) -> int:
    """Drop the pages of a file's read-only mappings from this process; return the bytes of those mappings.

    0 where the file is not mapped, or the system has no such list.
    """
    released = 0
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        for line in _MAPS.read_text().splitlines():
            span, mode, *_, name = line.split(maxsplit=5)
            if name.removesuffix(" (deleted)") != str(path.resolve()) or not mode.startswith("r-"):
                continue
            start, end = (int(address, 16) for address in span.split("-"))
            if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED) == 0:
                released += end - start
    return released
