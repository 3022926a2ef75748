"""The machine's store of downloaded files, by digest: a file is downloaded once, whichever versions and models share it.

CACHE/blobs/sha256/DIGEST     files, read-only, written only after their digest was compared
CACHE/verified/DIGEST         stamps of these files (`demi.bundles.stamps`), so that servers do not compare them again
CACHE/served/KEY/NAME/VERSION bundles of one address, whose files are links to the blobs
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from demi.bundles.manifest import FileEntry
from demi.bundles.stamps import VARIABLE, Stamps
from demi.errors import DigestError, InputError
from demi.processes.recorder import owning

CHUNK = 1 << 20

DRAFT = ".partial"
OLD_S = 24 * 3600
"""Age at which a draft is certainly left by a process that died."""

Open = Callable[[], AbstractContextManager[IO[bytes]]]
"""Opens the remote file, to be read once."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder for downloads, shared by all processes of this user; others may not write to it."""

    folder: Path

    def served(self, key: str) -> Path:
        """Return the folder of the models of one address, created if it is missing."""
        return self._made(self.folder / "served" / hashlib.sha256(key.encode()).hexdigest()[:16])

    def fetch(self, entry: FileEntry, open_remote: Open, name: str) -> Path:
        """Return the file with this digest, downloaded if it is not here yet.

        Raises DigestError if what arrives is not what the manifest promises, and whatever opening raises.
        """
        folder = self._made(self.folder / "blobs" / "sha256")
        blob = folder / entry.sha256
        if blob.is_file():
            return blob
        _remove_old_drafts(folder)
        handle, draft = tempfile.mkstemp(prefix=".", suffix=DRAFT, dir=folder)
        with owning(Path(draft)):
            try:
                with os.fdopen(handle, "wb") as file, open_remote() as remote:
                    digest, size = _copied(remote, file, entry.bytes)
                if size != entry.bytes or digest != entry.sha256:
                    raise DigestError(
                        f"`{name}` is not the file that its manifest describes: {_difference(size, entry)}",
                        hint="the upload is incomplete or damaged: upload the bundle again",
                    )
                os.chmod(draft, 0o444)
                os.replace(draft, blob)
                Stamps(self.folder).record(entry.sha256, blob)
            finally:
                Path(draft).unlink(missing_ok=True)
        return blob

    def link(self, blob: Path, place: Path) -> None:
        """Give a file of the cache another name in a bundle; a copy where the file system has no links."""
        place.parent.mkdir(parents=True, exist_ok=True)
        was_compared = Stamps(self.folder).is_valid(blob.name, blob)
        try:
            os.link(blob, place)
        except OSError:
            shutil.copyfile(blob, place)
            return
        if was_compared:
            Stamps(self.folder).record(blob.name, blob)

    def _made(self, folder: Path) -> Path:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InputError(
                f"the cache cannot be written: {error.strerror or error}",
                where=str(folder),
                hint=f"name a folder that can be written with {VARIABLE}",
            ) from error
        return folder


def _remove_old_drafts(folder: Path) -> None:
    for draft in folder.glob(f".*{DRAFT}"):
        with contextlib.suppress(OSError):  # another process may be faster
            if time.time() - draft.stat().st_mtime > OLD_S:
                draft.unlink()


def _copied(remote: IO[bytes], file: IO[bytes], most: int) -> tuple[str, int]:
    """Copy a stream; return its digest and size. Ends early once it is longer than it may be."""
    digest, size = hashlib.sha256(), 0
    while size <= most and (chunk := remote.read(CHUNK)):
        digest.update(chunk)
        file.write(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _difference(size: int, entry: FileEntry) -> str:
    if size > entry.bytes:
        return f"it is longer than {entry.bytes:,} bytes"
    return f"it has {size:,} bytes instead of {entry.bytes:,}" if size < entry.bytes else "its digest differs"
