"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from demi.errors import InputError


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one step: readers see the old file or the new one, and after an error the old one stays.

    Raises InputError when it cannot be written.
    """
    draft: str | None = None
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(draft, 0o644)  # mkstemp makes files that nobody else can read
        os.replace(draft, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if draft is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)


def check_writable(path: Path) -> None:
    """Raise InputError when a file could not be written there: better told before the work than after it."""
    if path.is_dir():
        raise unwritable(path, IsADirectoryError(0, "it is a folder"))
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    os.close(handle)
    os.unlink(draft)


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a file that cannot be written."""
    return InputError(
        f"the file cannot be written: {error.strerror or error}",
        where=str(path),
        hint="check that its folder exists, free space and permissions",
    )
