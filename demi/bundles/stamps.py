"""Stamps of downloaded files: a file that was compared with its digest is not read for that again.

CACHE/verified/DIGEST     inode, size and times of the file with this digest, as they were when it was compared

A stamp holds for that very file as long as nothing was written to it: every write changes the time of the file's last change
(ctime), which programs cannot set, and so do new and removed links, after which a file is compared once more.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from demi.errors import InputError
from demi.files import write_bytes_whole

VARIABLE = "DEMI_CACHE"


def cache_folder(given: str | None = None) -> Path:
    """Return the cache of this machine: the folder given, that of DEMI_CACHE, or `demi` in the user's cache folder.

    Raises InputError for a user without a home folder, where none of the variables names another one.
    """
    chosen = given or os.environ.get(VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(chosen).expanduser() if chosen else Path(base).expanduser() / "demi"
    except RuntimeError as error:
        raise InputError(
            "there is no folder for downloads: this user has no home folder", hint=f"name one with {VARIABLE}"
        ) from error


class _Stamp(msgspec.Struct, frozen=True, array_like=True):
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Stamps:
    """The stamps of one cache. Only the owner of the cache can write them."""

    cache: Path

    def is_valid(self, digest: str, path: Path) -> bool:
        """Return whether this file was compared with this digest, and not changed since."""
        return self._read(digest) == _stamp_of(path)

    def record(self, digest: str, path: Path) -> None:
        """Record that a file has this digest. A cache that cannot be written keeps no stamps."""
        with contextlib.suppress(OSError):
            folder = self.cache / "verified"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_bytes_whole(folder / digest, msgspec.json.encode(_stamp_of(path)), 0o600)

    def renew(self, digest: str, path: Path) -> None:
        """Record that a file was compared again, if it is one of the cache."""
        known, now = self._read(digest), _stamp_of(path)
        if known is not None and (known.device, known.inode) == (now.device, now.inode):
            self.record(digest, path)

    def _read(self, digest: str) -> _Stamp | None:
        path = self.cache / "verified" / digest
        try:
            if path.stat().st_uid != os.geteuid():
                return None  # somebody else says so
            return msgspec.json.decode(path.read_bytes(), type=_Stamp)
        except (OSError, msgspec.MsgspecError):
            return None


def _stamp_of(path: Path) -> _Stamp:
    status = path.stat()
    return _Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def stamps() -> Stamps:
    """Return the stamps of this machine's cache; none where there is no cache."""
    try:
        return Stamps(cache_folder())
    except InputError:
        return Stamps(Path(os.devnull))
