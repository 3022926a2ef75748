"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from demi.errors import InputError
from demi.processes.recorder import making, owning

OWNER_ALONE = 0o600
EVERYBODY_READS = 0o644


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one step, readable by everybody; raises InputError when it cannot be written.

    A link is followed, and a pipe or a device such as `/dev/stdout` is written to: neither is replaced by a file.
    """
    data = text.encode("utf-8")
    try:
        if _is_stream(path):
            path.write_bytes(data)
        else:
            write_bytes_whole(Path(os.path.realpath(path)), data)
    except OSError as error:
        raise unwritable(path, error) from error


def write_bytes_whole(path: Path, data: bytes | memoryview, mode: int = EVERYBODY_READS) -> None:
    """Write a file in one step: readers see the old file or the new one, and after an error the old one stays.

    The bytes are on the disk before the file has its name. Raises OSError when it cannot be written.
    """
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # for its owner alone
    with owning(Path(draft)):
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(draft, mode)
            os.replace(draft, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make `folder` and its parents, for work whose results go there; those that are still empty after it are removed.

    Raises InputError, before the work, when they cannot be made.
    """
    made: list[Path] = []  # innermost first
    missing = folder
    while not missing.exists():
        made.append(missing)
        missing = missing.parent
    with contextlib.ExitStack() as noted:
        for path in made:
            noted.enter_context(making(path))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the output folder cannot be made: {error.strerror or error}",
                where=str(folder),
                hint="choose another folder with -o",
            ) from error
        try:
            yield
        finally:
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()  # only when still empty


def check_writable(path: Path) -> None:
    """Raise InputError when a file could not be written there: better told before the work than after it."""
    if path.is_dir():
        raise unwritable(path, IsADirectoryError(0, "it is a folder"))
    if _is_stream(path):
        return
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=os.path.dirname(os.path.realpath(path)))
    except OSError as error:
        raise unwritable(path, error) from error
    os.close(handle)
    os.unlink(draft)


def why_unreadable(error: Exception) -> str:
    """Why NumPy cannot read a file; what it takes for a pickle is no array file, and nobody should be told to trust it."""
    text = str(error)
    return "it is no file of arrays, or holds Python objects" if "allow_pickle" in text else text


def _is_stream(path: Path) -> bool:
    """Whether there is a pipe, a device or a socket: a draft that took its place would be the end of it."""
    return path.exists() and not path.is_file() and not path.is_dir()


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a file that cannot be written."""
    return InputError(
        f"the file cannot be written: {error.strerror or error}",
        where=str(path),
        hint="check that its folder exists, free space and permissions",
    )
