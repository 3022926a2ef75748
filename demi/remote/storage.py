"""Folders in buckets and on web servers, through fsspec; its only home."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from demi.bundles.manifest import MANIFEST
from demi.errors import BundleError, missing_package
from demi.remote.address import PACKAGES, Address
from demi.remote.place import CHUNK, MOST_MANIFEST_BYTES, explained


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder in a bucket or on a web server."""

    address: Address
    _files: Any
    _root: str

    def bundles(self) -> list[str]:
        """Return the folders that hold a manifest: here, one level below or two. Raises BundleError if there is none."""
        with explained(self.address):
            for pattern in (MANIFEST, f"*/{MANIFEST}", f"*/*/{MANIFEST}"):
                found = self._files.glob(f"{self._root}/{pattern}")
                if found:
                    start = len(self._root) + 1
                    return sorted(str(path)[start : -len(MANIFEST)].rstrip("/") for path in found)
        raise BundleError(
            "there is no bundle at this address",
            where=str(self.address),
            hint="give the folder of one bundle, of a model, or of models; a web server must list its folders",
        )

    def read(self, path: str) -> bytes:
        """Return a small file. Raises BundleError for one that is missing or larger than a manifest can be."""
        with self.open(path) as file:
            data: bytes = file.read(MOST_MANIFEST_BYTES + 1)
        if len(data) > MOST_MANIFEST_BYTES:
            raise BundleError(f"`{path}` is larger than {MOST_MANIFEST_BYTES:,} bytes", where=str(self.address))
        return data

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """Open a file to be read from its start to its end. Raises BundleError for one that is missing."""
        with explained(self.address), self._files.open(self._place(path), "rb", cache_type="readahead") as file:
            yield file

    def exists(self, bundle: str) -> bool:
        """Return whether there is a bundle NAME/VERSION."""
        with explained(self.address):
            return bool(self._files.exists(self._place(f"{bundle}/{MANIFEST}")))

    def write(self, bundle: str, name: str, source: IO[bytes]) -> None:
        """Write a file of a bundle NAME/VERSION, replacing one of that name."""
        place = self._place(f"{bundle}/{name}")
        with explained(self.address):
            self._files.makedirs(
                place.rpartition("/")[0], exist_ok=True
            )  # buckets have no folders, and nothing happens
            with self._files.open(place, "wb") as file:
                while chunk := source.read(CHUNK):
                    file.write(chunk)

    def finish(self, bundle: str, manifest: bytes) -> str:
        """Write the manifest, which completes a bundle NAME/VERSION; return the bundle's address with its digest."""
        self.write(bundle, MANIFEST, io.BytesIO(manifest))
        return f"{self.address.url}/{bundle}@sha256:{hashlib.sha256(manifest).hexdigest()}"

    def _place(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root


def open_storage(address: Address) -> Storage:
    """Return the folder at an address. Credentials come from where each cloud's own tools look for them.

    Raises PackageError, naming the extra, when a package for its scheme is missing.
    """
    for package in ("fsspec", PACKAGES[address.scheme]):
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "remote")
    import fsspec

    with explained(address):
        # Listings are not kept: a server that watches a bucket would never see a new version.
        files, root = fsspec.core.url_to_fs(address.url, **_options(address.scheme))
    return Storage(address, files, str(root).rstrip("/"))


def _options(scheme: str) -> dict[str, Any]:
    return {} if scheme == "memory" else {"use_listings_cache": False, "skip_instance_cache": True}
