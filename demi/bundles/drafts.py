"""Draft folders, in which a result is built before it gets its final name.

The process that builds a draft holds a lock on it, which the system releases when the process dies. The next process
that writes to the same place removes drafts without a lock.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from demi.bundles.find import is_version
from demi.processes.recorder import owning

try:
    import fcntl
except ImportError:  # no such locks on this system: abandoned drafts stay
    fcntl = None  # type: ignore[assignment]

PARTIAL, REPLACED = ".partial", ".replaced"


@contextlib.contextmanager
def draft_beside(target: Path) -> Iterator[Path]:
    """Yield a hidden draft folder beside `target`; it is removed after the block unless it was renamed."""
    remove_abandoned(target)
    draft: Path | None = None
    with contextlib.ExitStack() as held:
        try:
            with locked(target.parent):  # so that no process finds the draft before it is locked
                draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=PARTIAL, dir=target.parent))
                held.enter_context(locked(draft))
            with owning(draft):
                yield draft
        finally:
            if draft is not None:
                shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a temporary folder, removed after the block."""
    with tempfile.TemporaryDirectory(prefix="demi-") as name, owning(folder := Path(name)):
        yield folder


def remove_abandoned(target: Path) -> list[Path]:
    """Remove drafts of `target` whose processes have died, and return their paths.

    A version's folder stands for all versions of its model. A bundle that a process had moved aside when it died is
    moved back to its place.
    """
    if fcntl is None or not target.parent.is_dir():
        return []
    found: list[Path] = []
    with locked(target.parent):
        for path in abandoned(target):
            place = target.with_name(_place_of(path))
            if path.suffix == REPLACED and not place.exists():
                path.rename(place)
            else:
                shutil.rmtree(path, ignore_errors=True)
            found.append(path)
    return found


def abandoned(target: Path) -> list[Path]:
    """Return the drafts of `target`, or of all versions beside it, whose processes have died; replaced bundles first."""
    wanted = "*" if is_version(target.name) else glob.escape(target.name)
    found = [path for suffix in (REPLACED, PARTIAL) for path in sorted(target.parent.glob(f".{wanted}-*{suffix}"))]
    mine = [path for path in found if _place_of(path) == target.name or is_version(_place_of(path))]
    return [path for path in mine if fcntl is not None and _is_abandoned(path)]


def _place_of(draft: Path) -> str:
    """Return the name of the folder that a draft was to become: `.1-abcdef.partial` is for `1`."""
    return draft.name.removeprefix(".").rpartition("-")[0]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder during the block; without effect on file systems without locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_abandoned(path: Path) -> bool:
    """Return whether no process holds the lock on a draft."""
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
