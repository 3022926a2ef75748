"""Write files atomically, and check early that they can be written."""

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
    """Write a text file atomically, readable by all users. Raises InputError when it cannot be written.

    Links are followed, and pipes and devices such as `/dev/stdout` are written to, not replaced.
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
    """Write a file atomically: readers see the old file or the new one, and after an error the old one stays.

    The bytes are on disk before the file gets its name. Raises OSError when it cannot be written.
    """
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # readable by its owner only
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
    """Create `folder` and its parents for the block; folders that are still empty after it are removed.

    Raises InputError, before the block, when they cannot be created.
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
                f"the output folder cannot be created: {error.strerror or error}",
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
    """Raise InputError when a file cannot be written there; called before long work whose result goes there."""
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
    """Return why NumPy cannot read a file, without its advice to unpickle files that are not arrays."""
    text = str(error)
    return "it is not a file of arrays, or holds Python objects" if "allow_pickle" in text else text


def _is_stream(path: Path) -> bool:
    """Return whether the path is a pipe, a device or a socket, which must not be replaced by a file."""
    return path.exists() and not path.is_file() and not path.is_dir()


def unwritable(path: Path, error: OSError) -> InputError:
    """Return the error for a file that cannot be written."""
    return InputError(
        f"the file cannot be written: {error.strerror or error}",
        where=str(path),
        hint="check that its folder exists, free space and permissions",
    )
