"""Folders in buckets and on web servers, through fsspec; its only home."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from demi.bundles.manifest import MANIFEST
from demi.errors import BundleError, DemiError, InferenceError, InputError, missing_package
from demi.remote.address import EXTRAS, Address

MOST_MANIFEST_BYTES = 16 << 20
"""Manifests are a few kilobytes; a larger file is something else."""

CHUNK = 1 << 20


class StorageError(InferenceError):
    """A bucket or web server cannot be read or written: the network, the credentials or its own state."""


@dataclass(frozen=True, slots=True)
class Storage:
    """One remote folder. Paths are relative to it; `` is the folder itself."""

    address: Address
    _files: Any
    _root: str

    def bundles(self) -> list[str]:
        """Return the folders that hold a manifest: here, one level below or two. Raises BundleError if there is none."""
        with _explained(self.address):
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
        with _explained(self.address), self._files.open(self._place(path), "rb", cache_type="readahead") as file:
            yield file

    def write(self, path: str, source: IO[bytes]) -> None:
        """Write a file, replacing one of that name."""
        with _explained(self.address), self._files.open(self._place(path), "wb") as file:
            while chunk := source.read(CHUNK):
                file.write(chunk)

    def exists(self, path: str) -> bool:
        """Return whether there is a file of that name."""
        with _explained(self.address):
            return bool(self._files.exists(self._place(path)))

    def make_folder(self, path: str) -> None:
        """Create a folder and its parents; buckets have none, and nothing happens."""
        with _explained(self.address):
            self._files.makedirs(self._place(path), exist_ok=True)

    def _place(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root


def open_storage(address: Address) -> Storage:
    """Return the folder at an address. Credentials come from where each cloud's own tools look for them.

    Raises PackageError, naming the extra, when a package for its scheme is missing.
    """
    for package in ("fsspec", EXTRAS[address.scheme]):
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "remote")
    import fsspec

    with _explained(address):
        # Listings are not kept: a server that watches a bucket would never see a new version.
        files, root = fsspec.core.url_to_fs(address.url, **_options(address.scheme))
    return Storage(address, files, str(root).rstrip("/"))


def _options(scheme: str) -> dict[str, Any]:
    return {} if scheme == "memory" else {"use_listings_cache": False, "skip_instance_cache": True}


@contextlib.contextmanager
def _explained(address: Address) -> Iterator[None]:
    """Turn what the libraries of clouds raise into Demi's errors."""
    try:
        yield
    except DemiError:
        raise
    except FileNotFoundError as error:
        raise BundleError("there is no such file or folder", where=_place_of(error, address)) from error
    except PermissionError as error:
        raise InputError(
            f"access is denied: {error}",
            where=str(address),
            hint="give this machine credentials as the cloud's own tools expect them, such as AWS_PROFILE or a role",
        ) from error
    except (OSError, ValueError, TimeoutError) as error:
        raise _unreachable(address, error) from error
    except Exception as error:  # botocore's and aiohttp's errors have no common base
        if "Credentials" in type(error).__name__:
            raise InputError(
                f"there are no credentials: {error}",
                where=str(address),
                hint="give this machine credentials as the cloud's own tools expect them, such as AWS_PROFILE or a role",
            ) from error
        raise _unreachable(address, error) from error


def _place_of(error: FileNotFoundError, address: Address) -> str:
    return f"{address} ({error})" if str(error) and str(error) not in str(address) else str(address)


def _unreachable(address: Address, error: Exception) -> StorageError:
    return StorageError(
        f"the storage cannot be read: {type(error).__name__}: {error}",
        where=str(address),
        hint="check the address and the network, and try again",
    )
