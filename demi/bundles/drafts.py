"""Folders in which a result is made before it has its name: gone when their makers end, however they end.

A maker holds a lock on its draft, and the system lets go of it when the maker dies. Whoever comes next to the same place
finds such drafts by that, and removes them.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from demi.processes.recorder import owning

try:
    import fcntl
except ImportError:  # no such locks on this system: drafts of the dead stay
    fcntl = None  # type: ignore[assignment]

PARTIAL, REPLACED = ".partial", ".replaced"


@contextlib.contextmanager
def draft_beside(target: Path) -> Iterator[Path]:
    """A hidden folder in the folder of `target`, for this block; it is removed after it, unless it has moved away."""
    remove_abandoned(target)
    draft: Path | None = None
    with contextlib.ExitStack() as held:
        try:
            with locked(target.parent):  # whoever looks for abandoned drafts waits until this one is locked
                draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=PARTIAL, dir=target.parent))
                held.enter_context(locked(draft))
            with owning(draft):
                yield draft
        finally:
            if draft is not None:
                shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for files that nobody will miss after the block."""
    with tempfile.TemporaryDirectory(prefix="demi-") as name, owning(folder := Path(name)):
        yield folder


def remove_abandoned(target: Path) -> list[Path]:
    """Remove drafts of `target` whose makers have died, and return them; drafts of the living stay.

    A maker that died while it exchanged the old for the new has left the old one beside its place: it goes back there.
    """
    if fcntl is None or not target.parent.is_dir():
        return []
    found: list[Path] = []
    with locked(target.parent):
        for suffix in (REPLACED, PARTIAL):
            for path in sorted(target.parent.glob(f".{glob.escape(target.name)}-*{suffix}")):
                if not _is_abandoned(path):
                    continue
                if suffix == REPLACED and not target.exists():
                    path.rename(target)
                else:
                    shutil.rmtree(path, ignore_errors=True)
                found.append(path)
    return found


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder for this block; where the file system has no locks, nothing is held."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_abandoned(path: Path) -> bool:
    """Whether nobody holds the lock on a draft."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
