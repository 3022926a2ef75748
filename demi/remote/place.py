"""Protocol of remote places with bundles of whatever kind, and their errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import IO, Protocol

from demi.errors import BundleError, DemiError, InferenceError, InputError
from demi.remote.address import Address

MOST_MANIFEST_BYTES = 16 << 20
"""Manifests are a few kilobytes; a larger file is something else."""

CHUNK = 1 << 20


class StorageError(InferenceError):
    """A bucket, registry or web server cannot be read or written: the network, the credentials or its own state."""


class Place(Protocol):
    """A remote folder of bundles. Paths are relative to it; `` is the folder itself."""

    @property
    def address(self) -> Address:
        """The address that it was opened for."""

    def bundles(self) -> list[str]:
        """Return the folders that hold a manifest. Raises BundleError if there is none."""

    def read(self, path: str) -> bytes:
        """Return a small file. Raises BundleError for one that is missing or larger than a manifest can be."""

    def open(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file to be read from its start to its end. Raises BundleError for one that is missing."""

    def exists(self, bundle: str) -> bool:
        """Return whether there is a bundle NAME/VERSION."""

    def write(self, bundle: str, name: str, source: IO[bytes]) -> None:
        """Write a file of a bundle NAME/VERSION, replacing one of that name."""

    def finish(self, bundle: str, manifest: bytes) -> str:
        """Write the manifest, which completes a bundle NAME/VERSION; return the bundle's address with a digest."""


@contextlib.contextmanager
def explained(address: Address) -> Iterator[None]:
    """Turn what the libraries of clouds and registries raise into Demi's errors."""
    try:
        yield
    except DemiError:
        raise
    except FileNotFoundError as error:
        raise BundleError("there is no such file or folder", where=_place_of(error, address)) from error
    except PermissionError as error:
        raise InputError(f"access is denied: {error}", where=str(address), hint=_credentials(address)) from error
    except (OSError, ValueError, TimeoutError) as error:
        raise _unreachable(address, error) from error
    except Exception as error:  # the errors of botocore, aiohttp and urllib3 have no common base
        if "Credentials" in type(error).__name__:
            raise InputError(
                f"there are no credentials: {error}", where=str(address), hint=_credentials(address)
            ) from error
        raise _unreachable(address, error) from error


def _credentials(address: Address) -> str:
    if address.scheme == "oci":
        return f"log in with `docker login {address.host}` or `oras login {address.host}`"
    return "give this machine credentials as the cloud's own tools expect them, such as AWS_PROFILE or a role"


def _place_of(error: FileNotFoundError, address: Address) -> str:
    return f"{address} ({error})" if str(error) and str(error) not in str(address) else str(address)


def _unreachable(address: Address, error: Exception) -> StorageError:
    return StorageError(
        f"the storage cannot be read: {type(error).__name__}: {error}",
        where=str(address),
        hint="check the address and the network, and try again",
    )
